"""Registered endpoints and what they last reported."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from flux_endpoint.protocol.rest import RegisterEndpoint
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import endpoints, users
from flux_endpoint.service.store.users import User, groups_of, revoke_endpoint_tokens

#: Seconds between two reports of an endpoint that doesn't say.
DEFAULT_HEARTBEAT_PERIOD = 30.0

#: Key of an endpoint's metadata by which this project's endpoints are known.
OWN_MAKE_KEY = "flux_endpoint_version"

#: Key of an endpoint's metadata that says how many tasks it takes in one message.
TOGETHER_KEY = "tasks_per_message"

#: In the place of a user's name: all users.
EVERYBODY = "*"

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
    #: Who may run tasks there besides its owner: names of users ("*": everybody), and of groups.
    users: list[str] | None
    groups: list[str] | None
    metadata: dict[str, Any]
    locked_until: float | None
    last_seen: float | None
    last_report: dict[str, Any] | None
    #: Of a user endpoint: the multi-user endpoint that starts it, and with what.
    parent_id: str | None
    user_config: dict[str, Any] | None
    user_runtime: dict[str, Any] | None
    #: Of the token that registered it last.
    token_id: str | None
    #: Of an endpoint of another make: its run that may hold tasks.
    run: float | None
    run_seen: float | None
    run_ends: float | None
    run_left: float | None

    @property
    def starts_user_endpoints(self) -> bool:
        """Whether it is a multi-user endpoint: it runs nothing itself, its user endpoints do."""
        return self.multi_user and not self.is_own_make

    @property
    def public_id(self) -> str:
        """The id that its users know."""
        return self.parent_id or self.id

    @property
    def is_own_make(self) -> bool:
        """Whether it is one of this project's, which can end tasks and attach to jobs."""
        return OWN_MAKE_KEY in self.metadata

    @property
    def takes_together(self) -> int:
        """How many tasks it takes in one message."""
        return _together(self.metadata)

    @property
    def status(self) -> Literal["online", "offline"]:
        """Whether it is online now."""
        return "online" if self.is_online(time.time()) else "offline"

    def is_online(self, now: float) -> bool:
        """Whether its last report is recent and doesn't say that it is going away."""
        report = self.last_report
        if report is None or self.last_seen is None:
            return False
        if report.get("active") is False or report.get("error"):
            return False
        return now - self.last_seen < MISSED_REPORTS * heartbeat_period(report)


def _together(metadata: Mapping[str, Any]) -> int:
    told = metadata.get(TOGETHER_KEY)
    return told if type(told) is int and told > 0 else 1


def takes_together(connection: sa.Connection, endpoint_id: str) -> int:
    """Return how many tasks an endpoint takes in one message."""
    query = sa.select(endpoints.c.metadata).where(endpoints.c.id == endpoint_id)
    return _together(connection.scalar(query) or {})


def heartbeat_period(report: Mapping[str, Any]) -> float:
    """Return the seconds until the next report."""
    period = report.get("heartbeat_period", DEFAULT_HEARTBEAT_PERIOD)
    if isinstance(period, bool) or not isinstance(period, int | float):
        return DEFAULT_HEARTBEAT_PERIOD
    return float(period) if math.isfinite(period) else DEFAULT_HEARTBEAT_PERIOD


_COLUMNS = (
    *(endpoints.c[name] for name in Endpoint.__dataclass_fields__ if name != "owner"),
    users.c.name.label("owner"),
)


#: What lists of endpoints do without.
_LEFT_OUT = ("metadata", "last_report", "allowed_functions", "user_config", "user_runtime")
_MAKE = endpoints.c.metadata[OWN_MAKE_KEY].as_string().label("own_make")
_LISTED = tuple(column for column in _COLUMNS if column.name not in _LEFT_OUT)


def get_endpoint(
    connection: sa.Connection, endpoint_id: str, *, deleted: bool = False
) -> Endpoint | None:
    """Return an endpoint; with `deleted` also one that was deleted."""
    rows = _select(connection, endpoints.c.id == endpoint_id, deleted=deleted)
    return rows[0] if rows else None


def list_endpoints(connection: sa.Connection, user: User, *, public: bool) -> list[Endpoint]:
    """Return the endpoints of a user and, if `public`, others that the user sees.

    Those are the public ones, and those where the user may run tasks. User endpoints are not
    listed: nobody names them. What each said of itself is left out but its make: others could make
    that long.
    """
    wanted = endpoints.c.owner_id == user.id
    if public:
        named = endpoints.c.users.is_not(None) | endpoints.c.groups.is_not(None)
        wanted = wanted | endpoints.c.public | named
    query = (
        sa.select(*_LISTED, _MAKE)
        .join_from(endpoints, users)
        .where(wanted, endpoints.c.parent_id.is_(None), endpoints.c.deleted_at.is_(None))
        .order_by(endpoints.c.created_at)
    )
    found = []
    for row in connection.execute(query).mappings():
        said = dict.fromkeys(_LEFT_OUT)
        make = row["own_make"]
        about = {} if make is None else {OWN_MAKE_KEY: make}
        known = {name: value for name, value in row.items() if name != "own_make"}
        each = Endpoint(**{**said, **known, "metadata": about})
        if may_see(connection, each, user):
            found.append(replace(each, users=None, groups=None))
    return found


def may_see(connection: sa.Connection, endpoint: Endpoint, user: User) -> bool:
    """Return whether a user may know of an endpoint."""
    return endpoint.public or may_run(connection, endpoint, user)


def may_run(connection: sa.Connection, endpoint: Endpoint, user: User) -> bool:
    """Return whether a user may run tasks at an endpoint.

    Whoever sees a multi-user endpoint may submit to it: it starts nothing for a user whom its own
    identity mapping does not know.
    """
    if endpoint.owner_id == user.id:
        return True
    if endpoint.starts_user_endpoints:
        return endpoint.public
    if not {user.name, EVERYBODY}.isdisjoint(endpoint.users or ()):
        return True
    return not groups_of(connection, user.id).isdisjoint(endpoint.groups or ())


def put_endpoint(
    connection: sa.Connection,
    endpoint_id: str,
    owner_id: str,
    request: RegisterEndpoint,
    token_id: str | None = None,
) -> bool:
    """Create an endpoint, or replace what it said of itself; a deleted one comes back.

    Returns whether that was done: not if there is one of this id that is somebody else's.

    Args:
        connection: a transaction that writes.
        endpoint_id: of the endpoint.
        owner_id: of its user.
        request: what it says of itself.
        token_id: of the token that registers it.
    """
    values = {
        "token_id": token_id,
        "name": request.endpoint_name,
        "display_name": request.display_name,
        "public": request.public,
        "multi_user": request.multi_user,
        "allowed_functions": request.allowed_functions,
        "users": request.users,
        "groups": request.groups,
        "metadata": request.metadata,
        "deleted_at": None,
    }
    its = endpoints.c.id == endpoint_id
    own = sa.update(endpoints).where(its, endpoints.c.owner_id == owner_id).values(**values)
    if connection.execute(own).rowcount:
        return True
    if connection.scalar(sa.select(endpoints.c.id).where(its)) is not None:
        return False
    created = {"id": endpoint_id, "owner_id": owner_id, "created_at": time.time()}
    connection.execute(sa.insert(endpoints).values(**values, **created))
    return True


def lock_existing(connection: sa.Connection, endpoint_id: str) -> bool:
    """Return whether an endpoint exists, which stays so to the end of the transaction."""
    query = (
        sa.select(endpoints.c.id)
        .where(endpoints.c.id == endpoint_id, endpoints.c.deleted_at.is_(None))
        .with_for_update(read=True)
    )
    return connection.scalar(query) is not None


def lock_endpoint(connection: sa.Connection, endpoint_id: str, until: float) -> None:
    """Refuse registrations of an endpoint until `until`."""
    connection.execute(
        sa.update(endpoints).where(endpoints.c.id == endpoint_id).values(locked_until=until)
    )


def delete_endpoint(connection: sa.Connection, endpoint_id: str, now: float) -> list[str]:
    """Hide an endpoint and its user endpoints, and have them emptied; return their ids.

    Their tasks and the results of these stay. Their tokens are gone, and so is all that they have
    said of themselves but their make: an id is kept for ever, and must not be large.
    """
    them = (endpoints.c.id == endpoint_id) | (endpoints.c.parent_id == endpoint_id)
    query = sa.select(endpoints.c.id, _MAKE).where(them, endpoints.c.deleted_at.is_(None))
    makes = {row.id: row.own_make for row in connection.execute(query)}
    ids = list(makes)
    for own in (True, False):
        those = [each for each, make in makes.items() if (make is not None) == own]
        metadata = {OWN_MAKE_KEY: ""} if own else {}
        left = sa.update(endpoints).where(endpoints.c.id.in_(those))
        connection.execute(
            left.values(
                metadata=metadata, last_report=None, allowed_functions=None, users=None, groups=None
            )
        )
    deletion = sa.update(endpoints).where(endpoints.c.id.in_(ids))
    connection.execute(deletion.values(deleted_at=now, empty_before=now, run=None))
    revoke_endpoint_tokens(connection, ids)
    return ids


def to_be_emptied(connection: sa.Connection) -> dict[str, float]:
    """Return the endpoints whose older tasks are to be failed: those submitted until then."""
    query = sa.select(endpoints.c.id, endpoints.c.empty_before).where(
        endpoints.c.empty_before.is_not(None)
    )
    return {row.id: row.empty_before for row in connection.execute(query)}


def emptied(connection: sa.Connection, endpoint_id: str, before: float) -> None:
    """Note that the tasks of an endpoint that were submitted before have failed."""
    connection.execute(
        sa.update(endpoints)
        .where(endpoints.c.id == endpoint_id, endpoints.c.empty_before == before)
        .values(empty_before=None)
    )


def endpoint_ids(connection: sa.Connection) -> list[str]:
    """Return the ids of all endpoints that were not deleted."""
    query = sa.select(endpoints.c.id).where(endpoints.c.deleted_at.is_(None))
    return list(connection.scalars(query))


def known_endpoints(connection: sa.Connection, ids: Iterable[str]) -> dict[str, bool]:
    """Return which of `ids` are registered, and whether they are of this project's make."""
    found: dict[str, bool] = {}
    for part in chunks(ids):
        query = sa.select(endpoints.c.id, endpoints.c.metadata).where(
            endpoints.c.id.in_(part), endpoints.c.deleted_at.is_(None)
        )
        found.update((row.id, OWN_MAKE_KEY in row[1]) for row in connection.execute(query))
    return found


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
