"""Registered endpoints and their last status reports."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from flux_endpoint.protocol.rest import RegisterEndpoint
from flux_endpoint.protocol.run_options import RUN_OPTIONS_KEY
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import endpoints, users
from flux_endpoint.service.store.users import User, groups_of, revoke_endpoint_tokens

#: Default time (s) between two reports of an endpoint.
DEFAULT_HEARTBEAT_PERIOD = 30.0

#: Key that only the metadata of Flux Endpoint's own endpoints has.
OWN_MAKE_KEY = "flux_endpoint_version"

#: Key that only the metadata of Flux Endpoint's own multi-user endpoints has. Its value is that of
#: `OWN_MAKE_KEY` for their user endpoints.
OWN_USER_ENDPOINTS_KEY = "user_endpoints_version"

#: Key of an endpoint's metadata: maximum number of tasks that it accepts in one message.
TOGETHER_KEY = "tasks_per_message"

#: Keys of metadata: whether it or its user endpoints understand `ReportsWanted`, `OutputWanted`.
REPORTS_KEY, OUTPUT_KEY = "reports_on_request", "output_on_request"

#: Seconds for which a report is of interest, and the most reports that are read.
_DAY, _MOST_REPORTS = 86_400.0, 500

#: Stands for all users in a list of user names.
EVERYBODY = "*"

#: Number of missed reports after which an endpoint is offline.
MISSED_REPORTS = 3


@dataclass(frozen=True)
class OfficialState:
    """State that only official endpoints have. Times are in seconds since the epoch."""

    #: Of a user endpoint: its multi-user endpoint, and its start parameters.
    parent_id: str | None
    user_config: dict[str, Any] | None
    user_runtime: dict[str, Any] | None
    #: Its run that may have tasks (see `official.store.runs`).
    run: float | None
    run_seen: float | None
    run_ends: float | None
    run_left: float | None


@dataclass(frozen=True)
class Endpoint(OfficialState):
    """A registered endpoint. Times are in seconds since the epoch."""

    id: str
    owner_id: str
    owner: str
    name: str
    display_name: str | None
    public: bool
    multi_user: bool
    allowed_functions: list[str] | None
    #: Users ("*": all) and groups that may run tasks there, besides the owner.
    users: list[str] | None
    groups: list[str] | None
    metadata: dict[str, Any]
    locked_until: float | None
    last_seen: float | None
    last_report: dict[str, Any] | None
    #: Id of the token with which it was last registered.
    token_id: str | None

    @property
    def starts_user_endpoints(self) -> bool:
        """Whether it is a multi-user endpoint, whose user endpoints run the tasks."""
        return self.multi_user and not self.is_own_make

    @property
    def starts_own_user_endpoints(self) -> bool:
        """Whether its user endpoints are of Flux Endpoint."""
        return OWN_USER_ENDPOINTS_KEY in self.metadata

    @property
    def public_id(self) -> str:
        """The id that users know: that of the multi-user endpoint, if it has one."""
        return self.parent_id or self.id

    @property
    def metadata_of_user_endpoints(self) -> dict[str, Any]:
        """The metadata of the user endpoints that it starts."""
        version = self.metadata.get(OWN_USER_ENDPOINTS_KEY)
        also = self.metadata.keys() & {OUTPUT_KEY, RUN_OPTIONS_KEY}
        known = {key: self.metadata[key] for key in also}
        return {} if version is None else {OWN_MAKE_KEY: version, **known}

    @property
    def is_own_make(self) -> bool:
        """Whether it is an endpoint of Flux Endpoint, which can end tasks and attach to jobs."""
        return OWN_MAKE_KEY in self.metadata

    @property
    def takes_together(self) -> int:
        """Maximum number of tasks that it accepts in one message."""
        return _together(self.metadata)

    def refused_options(self, names: Iterable[str]) -> list[str]:
        """Return the options of calls that it does not know."""
        known = self.metadata.get(RUN_OPTIONS_KEY)
        return [name for name in names if not isinstance(known, list) or name not in known]

    @property
    def reports_on_request(self) -> bool:
        """Whether it understands a request to report often."""
        return self.is_own_make and self.metadata.get(REPORTS_KEY) is True

    @property
    def sends_output(self) -> bool:
        """Whether it understands a request to send what a task prints."""
        return self.is_own_make and self.metadata.get(OUTPUT_KEY) is True

    @property
    def status(self) -> Literal["online", "offline"]:
        """Whether it is online now."""
        return "online" if self.is_online(time.time()) else "offline"

    def is_online(self, now: float) -> bool:
        """Return whether its last report is recent and does not announce its end.

        Args:
            now: seconds since the epoch.
        """
        return is_online(self.last_report, self.last_seen, now)


def is_online(report: Mapping[str, Any] | None, last_seen: float | None, now: float) -> bool:
    """Return whether an endpoint's last report is recent and does not announce its end.

    Args:
        report: the report.
        last_seen: when it came (seconds since the epoch).
        now: seconds since the epoch.
    """
    if report is None or last_seen is None:
        return False
    if report.get("active") is False or report.get("error"):
        return False
    return now - last_seen < MISSED_REPORTS * heartbeat_period(report)


def _together(metadata: Mapping[str, Any]) -> int:
    number = metadata.get(TOGETHER_KEY)
    return number if type(number) is int and number > 0 else 1


def takes_together(connection: sa.Connection, endpoint_id: str) -> int:
    """Return the maximum number of tasks that an endpoint accepts in one message."""
    query = sa.select(endpoints.c.metadata).where(endpoints.c.id == endpoint_id)
    return _together(connection.scalar(query) or {})


def heartbeat_period(report: Mapping[str, Any]) -> float:
    """Return the time (s) until the next report, according to a report."""
    period = report.get("heartbeat_period", DEFAULT_HEARTBEAT_PERIOD)
    if isinstance(period, bool) or not isinstance(period, int | float):
        return DEFAULT_HEARTBEAT_PERIOD
    return float(period) if math.isfinite(period) else DEFAULT_HEARTBEAT_PERIOD


_COLUMNS = (
    *(endpoints.c[name] for name in Endpoint.__dataclass_fields__ if name != "owner"),
    users.c.name.label("owner"),
)


#: Columns that are left out of lists of endpoints.
_OMITTED = ("metadata", "last_report", "allowed_functions", "user_config", "user_runtime")
_MAKE = endpoints.c.metadata[OWN_MAKE_KEY].as_string().label("own_make")
_LISTED = tuple(column for column in _COLUMNS if column.name not in _OMITTED)


_EXISTING_OR_DELETED = (
    sa.select(*_COLUMNS)
    .join_from(endpoints, users)
    .where(endpoints.c.id == sa.bindparam("endpoint"))
)
_EXISTING = _EXISTING_OR_DELETED.where(endpoints.c.deleted_at.is_(None))


def get_endpoint(
    connection: sa.Connection, endpoint_id: str, *, deleted: bool = False
) -> Endpoint | None:
    """Return an endpoint, or `None` if there is none.

    Args:
        connection: a transaction.
        endpoint_id: the endpoint.
        deleted: whether to return a deleted endpoint, too.
    """
    query = _EXISTING_OR_DELETED if deleted else _EXISTING
    row = connection.execute(query, {"endpoint": endpoint_id}).mappings().one_or_none()
    return Endpoint(**row) if row else None


def list_endpoints(connection: sa.Connection, user: User, *, public: bool) -> list[Endpoint]:
    """Return a user's endpoints and, if requested, others that the user may see.

    Other endpoints are visible if they are public, or if the user may run tasks there. User
    endpoints are not listed, since users submit to their multi-user endpoint. Metadata is left out
    except for `OWN_MAKE_KEY`, since other users could make it large.

    Args:
        connection: a transaction.
        user: the user.
        public: whether to include endpoints of other users.
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
        omitted = dict.fromkeys(_OMITTED)
        make = row["own_make"]
        about = {} if make is None else {OWN_MAKE_KEY: make}
        known = {name: value for name, value in row.items() if name != "own_make"}
        each = Endpoint(**{**omitted, **known, "metadata": about})
        if may_see(connection, each, user):
            found.append(replace(each, users=None, groups=None))
    return found


def recent_reports(connection: sa.Connection, user: User) -> list[dict[str, Any]]:
    """Return the reports of endpoints that a user's tasks may run at, those of a day.

    They are the user's own, which include the user endpoints of multi-user endpoints, then those
    that others have opened to users or groups.
    """
    theirs = (
        (endpoints.c.owner_id == user.id)
        | endpoints.c.users.is_not(None)
        | endpoints.c.groups.is_not(None)
    )
    query = (
        sa.select(endpoints.c.last_report)
        .where(theirs, endpoints.c.deleted_at.is_(None), endpoints.c.last_seen > time.time() - _DAY)
        .order_by(endpoints.c.owner_id != user.id, endpoints.c.last_seen.desc())
        .limit(_MOST_REPORTS)
    )
    return [each for each in connection.scalars(query) if isinstance(each, dict)]


def may_see(connection: sa.Connection, endpoint: Endpoint, user: User) -> bool:
    """Return whether a user may see an endpoint."""
    return endpoint.public or may_run(connection, endpoint, user)


def may_run(connection: sa.Connection, endpoint: Endpoint, user: User) -> bool:
    """Return whether a user may run tasks at an endpoint.

    All users who can see a multi-user endpoint may submit to it, unless it says who. It starts
    nothing for a user who is missing in its own identity mapping.
    """
    if endpoint.owner_id == user.id:
        return True
    if endpoint.starts_user_endpoints and endpoint.users is None and endpoint.groups is None:
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
    """Create an endpoint, or replace its description; a deleted one is restored.

    Args:
        connection: a transaction that writes.
        endpoint_id: id of the endpoint.
        owner_id: id of its owner.
        request: its description.
        token_id: id of the token with which it is registered.

    Returns:
        `False` if the id belongs to an endpoint of another user; nothing is written then.
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


_LOCK_EXISTING = (
    sa.select(endpoints.c.id)
    .where(endpoints.c.id == sa.bindparam("endpoint"), endpoints.c.deleted_at.is_(None))
    .with_for_update(read=True)
)


def lock_existing(connection: sa.Connection, endpoint_id: str) -> bool:
    """Return whether an endpoint exists; lock its row until the end of the transaction."""
    return connection.scalar(_LOCK_EXISTING, {"endpoint": endpoint_id}) is not None


def lock_endpoint(connection: sa.Connection, endpoint_id: str, until: float) -> None:
    """Refuse registrations of an endpoint for a time.

    Args:
        connection: a transaction that writes.
        endpoint_id: the endpoint.
        until: end of the lock (seconds since the epoch).
    """
    connection.execute(
        sa.update(endpoints).where(endpoints.c.id == endpoint_id).values(locked_until=until)
    )


def delete_endpoint(connection: sa.Connection, endpoint_id: str, now: float) -> list[str]:
    """Mark an endpoint and its user endpoints as deleted, and for cleanup.

    Their tasks and results are kept. Their tokens are deleted, and so is their metadata except for
    `OWN_MAKE_KEY`: the rows are kept forever and must stay small.

    Args:
        connection: a transaction that writes.
        endpoint_id: the endpoint.
        now: seconds since the epoch.

    Returns:
        The ids of the deleted endpoints.
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
    """Return the deleted endpoints that need a cleanup, and the time of their deletion.

    Open tasks that were submitted until that time must fail.
    """
    query = sa.select(endpoints.c.id, endpoints.c.empty_before).where(
        endpoints.c.empty_before.is_not(None)
    )
    return {row.id: row.empty_before for row in connection.execute(query)}


def emptied(connection: sa.Connection, endpoint_id: str, before: float) -> None:
    """Record that the cleanup of a deleted endpoint is complete.

    Args:
        connection: a transaction that writes.
        endpoint_id: the endpoint.
        before: time of the deletion (seconds since the epoch); a later one needs another cleanup.
    """
    connection.execute(
        sa.update(endpoints)
        .where(endpoints.c.id == endpoint_id, endpoints.c.empty_before == before)
        .values(empty_before=None)
    )


def endpoint_ids(connection: sa.Connection) -> list[str]:
    """Return the ids of all endpoints that are not deleted."""
    query = sa.select(endpoints.c.id).where(endpoints.c.deleted_at.is_(None))
    return list(connection.scalars(query))


def known_endpoints(connection: sa.Connection, ids: Iterable[str]) -> dict[str, bool]:
    """Return the registered endpoints among `ids`.

    The value of each is whether it is started by its owner and of Flux Endpoint, so that nothing
    must be done for it: it is neither an official endpoint nor a user endpoint.
    """
    found: dict[str, bool] = {}
    for part in chunks(ids):
        query = sa.select(endpoints.c.id, endpoints.c.metadata, endpoints.c.parent_id).where(
            endpoints.c.id.in_(part), endpoints.c.deleted_at.is_(None)
        )
        for row in connection.execute(query):
            found[row.id] = OWN_MAKE_KEY in row[1] and row.parent_id is None
    return found


def record_reports(
    connection: sa.Connection, reports: Mapping[str, dict[str, Any]], now: float
) -> None:
    """Store the last report of each endpoint.

    Args:
        connection: a transaction that writes.
        reports: reports by endpoint id.
        now: seconds since the epoch.
    """
    statement = (
        sa.update(endpoints)
        .where(endpoints.c.id == sa.bindparam("of_endpoint"))
        .values(last_report=sa.bindparam("report"), last_seen=now)
    )
    connection.execute(
        statement, [{"of_endpoint": of, "report": report} for of, report in reports.items()]
    )
