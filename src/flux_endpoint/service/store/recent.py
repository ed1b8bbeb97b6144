"""Queries of a user's page: the tasks that run, and the latest task groups."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import sqlalchemy as sa

from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.listing import RUNNING
from flux_endpoint.service.store.tables import functions, submissions, task_events, tasks

#: Number of latest starts of jobs, of all users, among which are those that run.
_STARTS = 5000
#: Number of tasks in reports among which are those that run: others' endpoints could name any.
_NAMED = 20_000
#: Maximum number of running tasks.
_MOST_RUNNING = 500
#: Number of newest submissions whose groups are found.
_SUBMISSIONS = 100


def running_ids(
    connection: sa.Connection, owner_id: str, reports: Iterable[Mapping[str, Any]]
) -> frozenset[str]:
    """Return the ids of tasks that may be running, without a search of all that wait.

    Args:
        connection: a transaction.
        owner_id: id of the user who owns the tasks.
        reports: status reports of the endpoints that may run them.
    """
    named = [each.get(RUNNING) for each in reports if each.get("active") is not False]
    ids = list(islice((id_ for each in named if isinstance(each, dict) for id_ in each), _NAMED))
    started = (
        sa.select(task_events.c.task_id)
        .where(task_events.c.name == "start")
        .order_by(task_events.c.sequence.desc())
        .limit(_STARTS)
    )
    ids += connection.scalars(started)
    found: set[str] = set()
    for part in chunks(ids):
        query = (
            sa.select(tasks.c.id)
            .join_from(tasks, submissions)
            .where(
                tasks.c.id.in_(part),
                tasks.c.completed_at.is_(None),
                submissions.c.owner_id == owner_id,
            )
        )
        found.update(connection.scalars(query))
    return frozenset(list(found)[:_MOST_RUNNING])


def newest_groups(
    connection: sa.Connection, owner_id: str
) -> Iterator[tuple[str, float, str | None]]:
    """Yield the task group, the time and a function's name of a user's newest submissions."""
    newest = (
        sa.select(submissions.c.id, submissions.c.group_id, submissions.c.created_at)
        .where(submissions.c.owner_id == owner_id)
        .order_by(submissions.c.id.desc())
        .limit(_SUBMISSIONS)
        .subquery()
    )
    first = (tasks.c.submission_id == newest.c.id) & (tasks.c.position == 0)
    query = (
        sa.select(newest.c.group_id, newest.c.created_at, functions.c.name)
        .outerjoin_from(newest, tasks, first)
        .outerjoin(functions)
        .order_by(newest.c.id.desc())
    )
    for row in connection.execute(query):
        yield row.group_id, row.created_at, row.name
