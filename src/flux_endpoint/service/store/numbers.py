"""The numbers of `GET /metrics` that are in the database; none of them needs a scan of tasks."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from flux_endpoint.service.store.endpoints import Endpoint, get_endpoint
from flux_endpoint.service.store.tables import endpoints, submissions, users

#: Seconds after which an endpoint that does not report has no metrics any more.
FORGOTTEN_AFTER = 86_400.0
#: Maximum number of endpoints with metrics; those that reported last.
MOST_ENDPOINTS = 1000


@dataclass(frozen=True)
class Totals:
    """Numbers of all users' things."""

    users: int
    open_tasks: int
    open_bytes: int
    unpublished_submissions: int


def totals(connection: sa.Connection) -> Totals:
    """Return the totals. Open tasks are counted per user as they come and end."""
    query = sa.select(
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(users.c.open_tasks), 0),
        sa.func.coalesce(sa.func.sum(users.c.open_bytes), 0),
    )
    count, tasks, size = connection.execute(query.select_from(users)).one()
    unpublished = sa.select(sa.func.count()).where(submissions.c.published_at.is_(None))
    waiting = connection.scalar(unpublished.select_from(submissions)) or 0
    return Totals(int(count), int(tasks), int(size), int(waiting))


def reporting_endpoints(connection: sa.Connection) -> Iterator[Endpoint]:
    """Yield the endpoints that have reported within a day."""
    query = (
        sa.select(endpoints.c.id)
        .where(
            endpoints.c.deleted_at.is_(None),
            endpoints.c.last_seen > time.time() - FORGOTTEN_AFTER,
        )
        .order_by(endpoints.c.last_seen.desc())
        .limit(MOST_ENDPOINTS)
    )
    for endpoint_id in connection.scalars(query).all():
        found = get_endpoint(connection, endpoint_id)
        if found is not None:
            yield found


def open_tasks(connection: sa.Connection, user_id: str) -> int:
    """Return the number of a user's open tasks."""
    found: Any = connection.scalar(sa.select(users.c.open_tasks).where(users.c.id == user_id))
    return int(found or 0)
