"""Registered endpoints and what they last reported."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from flux_endpoint.protocol.rest import RegisterEndpoint
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import endpoints, users

#: Seconds between two reports of an endpoint that doesn't say.
DEFAULT_HEARTBEAT_PERIOD = 30.0

#: Key of an endpoint's metadata by which this project's endpoints are known.
OWN_MAKE_KEY = "flux_endpoint_version"

#: An endpoint is offline when it missed so many reports.
MISSED_REPORTS = 3


@dataclass(frozen=True)
class Endpoint:
    """A registered endpoint."""

    id: str
    owner_id: str
    owner: str
    name: str
    display_name: str | None
    public: bool
    multi_user: bool
    allowed_functions: list[str] | None
    metadata: dict[str, Any]
    locked_until: float | None
    last_seen: float | None
    last_report: dict[str, Any] | None

    @property
    def is_own_make(self) -> bool:
        """Whether it is one of this project's, which can end tasks and attach to jobs."""
        return OWN_MAKE_KEY in self.metadata

    def is_online(self, now: float) -> bool:
        """Whether its last report is recent and doesn't say that it is going away."""
        report = self.last_report
        if report is None or self.last_seen is None:
            return False
        if report.get("active") is False or report.get("error"):
            return False
        period = report.get("heartbeat_period", DEFAULT_HEARTBEAT_PERIOD)
        if isinstance(period, bool) or not isinstance(period, int | float):
            period = DEFAULT_HEARTBEAT_PERIOD
        return now - self.last_seen < MISSED_REPORTS * float(period)


_COLUMNS = (
    *(column for column in endpoints.c if column.name not in {"created_at", "deleted_at"}),
    users.c.name.label("owner"),
)


def get_endpoint(
    connection: sa.Connection, endpoint_id: str, *, deleted: bool = False
) -> Endpoint | None:
    """Return an endpoint; with `deleted` also one that was deleted."""
    rows = _select(connection, endpoints.c.id == endpoint_id, deleted=deleted)
    return rows[0] if rows else None


def list_endpoints(connection: sa.Connection, user_id: str, *, public: bool) -> list[Endpoint]:
    """Return the endpoints of a user and, if `public`, everybody's public ones."""
    mine = endpoints.c.owner_id == user_id
    return _select(connection, mine | endpoints.c.public if public else mine)


def put_endpoint(
    connection: sa.Connection, endpoint_id: str, owner_id: str, request: RegisterEndpoint
) -> None:
    """Create an endpoint, or replace what it said of itself; a deleted one comes back."""
    values = {
        "name": request.endpoint_name,
        "display_name": request.display_name,
        "public": request.public,
        "multi_user": request.multi_user,
        "allowed_functions": request.allowed_functions,
        "metadata": request.metadata,
        "deleted_at": None,
    }
    known = sa.update(endpoints).where(endpoints.c.id == endpoint_id).values(**values)
    if connection.execute(known).rowcount == 0:
        created = {"id": endpoint_id, "owner_id": owner_id, "created_at": time.time()}
        connection.execute(sa.insert(endpoints).values(**values, **created))


def owner_of(connection: sa.Connection, endpoint_id: str) -> str | None:
    """Return the id of an endpoint's owner, even of a deleted one."""
    return connection.scalar(sa.select(endpoints.c.owner_id).where(endpoints.c.id == endpoint_id))


def lock_endpoint(connection: sa.Connection, endpoint_id: str, until: float) -> None:
    """Refuse registrations of an endpoint until `until`."""
    connection.execute(
        sa.update(endpoints).where(endpoints.c.id == endpoint_id).values(locked_until=until)
    )


def delete_endpoint(connection: sa.Connection, endpoint_id: str) -> None:
    """Hide an endpoint; its tasks and their results stay."""
    connection.execute(
        sa.update(endpoints).where(endpoints.c.id == endpoint_id).values(deleted_at=time.time())
    )


def endpoint_ids(connection: sa.Connection) -> list[str]:
    """Return the ids of all endpoints that were not deleted."""
    query = sa.select(endpoints.c.id).where(endpoints.c.deleted_at.is_(None))
    return list(connection.scalars(query))


def known_endpoints(connection: sa.Connection, ids: Iterable[str]) -> set[str]:
    """Return which of `ids` are registered."""

    def found() -> Iterator[str]:
        for part in chunks(ids):
            query = sa.select(endpoints.c.id).where(
                endpoints.c.id.in_(part), endpoints.c.deleted_at.is_(None)
            )
            yield from connection.scalars(query)

    return set(found())


def record_reports(
    connection: sa.Connection, reports: Mapping[str, dict[str, Any]], now: float
) -> None:
    """Store the last report of each endpoint."""
    statement = (
        sa.update(endpoints)
        .where(endpoints.c.id == sa.bindparam("of_endpoint"))
        .values(last_report=sa.bindparam("report"), last_seen=now)
    )
    connection.execute(
        statement, [{"of_endpoint": of, "report": report} for of, report in reports.items()]
    )


def _select(
    connection: sa.Connection, condition: sa.ColumnElement[bool], *, deleted: bool = False
) -> list[Endpoint]:
    query = (
        sa.select(*_COLUMNS)
        .join_from(endpoints, users)
        .where(condition)
        .order_by(endpoints.c.created_at)
    )
    if not deleted:
        query = query.where(endpoints.c.deleted_at.is_(None))
    return [Endpoint(**row) for row in connection.execute(query).mappings()]
