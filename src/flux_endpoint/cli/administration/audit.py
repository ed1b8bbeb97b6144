"""`flux-endpoint service audit`: who did what, from the service's audit log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import click

from flux_endpoint.audit import read_records
from flux_endpoint.cli.administration.options import (
    audit_log_at,
    database_at,
    database_url_option,
    open_database,
    setting,
)
from flux_endpoint.cli.options import put_json
from flux_endpoint.cli.table import (
    Column,
    Row,
    View,
    shown_moment,
    view_options,
)
from flux_endpoint.errors import ConfigurationError, NotFoundError
from flux_endpoint.protocol.duration import parse_duration

if TYPE_CHECKING:
    from sqlalchemy import Connection

_COLUMNS = {
    "time": Column("TIME"),
    "user": Column("USER", least=6),
    "event": Column("EVENT", least=15),
    "endpoint": Column("ENDPOINT", least=8, goes=2),
    "what": Column("WHAT", least=12, goes=1),
    "address": Column("ADDRESS", least=7, goes=3),
}
#: Fields with a column of their own, or that say nothing to people.
_SHOWN = frozenset(
    {"time", "user", "event", "endpoint_id", "address", "functions", "tasks", "function_id"}
    | {"submission_id", "task_group_id"}
)
#: Fields with the endpoint that a record is about.
_ENDPOINT_FIELDS = ("endpoint_id", "token_of")


class _Names:
    """Names of endpoints and functions by id, those of deleted endpoints included.

    Args:
        connection: a transaction of the service's database; `None`: nothing has a name.
    """

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection
        self.endpoints: dict[str, str] = {}
        self.functions: dict[str, str] = {}

    def endpoints_called(self, name: str) -> list[str]:
        """Return the ids of the endpoints with a name."""
        return self._called("endpoints", name)

    def functions_called(self, name: str) -> list[str]:
        """Return the ids of the functions with a name."""
        return self._called("functions", name)

    def look_up(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Look up the names of what records are about."""
        if self._connection is None:
            return
        from flux_endpoint.service.store.administration import names_of  # noqa: PLC0415 - the extra

        records = list(records)
        endpoints = {endpoint for each in records if (endpoint := _endpoint(each))}
        functions = {its_id for each in records for its_id in _functions(each)}
        self.endpoints = names_of(self._connection, "endpoints", endpoints)
        self.functions = names_of(self._connection, "functions", functions)

    def _called(self, table: Literal["endpoints", "functions"], name: str) -> list[str]:
        if self._connection is None:
            return []
        from flux_endpoint.service.store.administration import ids_called  # noqa: PLC0415 - as above

        return ids_called(self._connection, table, name)


@dataclass(frozen=True)
class _Filter:
    """The filter of a list of records; `None` matches all records."""

    user: str | None
    endpoints: frozenset[str] | None
    functions: frozenset[str] | None
    event: str | None
    since: float | None
    until: float | None

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record is one of those that are wanted."""
        if self.user is not None and self.user not in _users(record):
            return False
        if self.event is not None and self.event.casefold() not in _event(record).casefold():
            return False
        if self.endpoints is not None and _endpoint(record) not in self.endpoints:
            return False
        if self.functions is not None and self.functions.isdisjoint(_functions(record)):
            return False
        return self._is_in_time(record)

    def _is_in_time(self, record: Mapping[str, Any]) -> bool:
        if self.since is None and self.until is None:
            return True
        at = _time(record)
        if at is None or at < (self.since or 0.0):
            return False
        return self.until is None or at < self.until


def _moment(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """Return the time in an option: a duration before now, or a date with or without a time."""
    if text is None:
        return None
    try:
        return time.time() - parse_duration(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a duration before now (2h, 7d) nor a time (2026-11-28, "
            "2026-11-28T14:30)"
        ) from None


@click.command()
@click.option("--user", metavar="NAME", help="Only what this user did, or was done to the user.")
@click.option("--endpoint", metavar="NAME|ID", help="Only records about this endpoint.")
@click.option("--function", metavar="NAME|ID", help="Only submissions of this function.")
@click.option("--event", metavar="TEXT", help="Only events with this in their names.")
@click.option(
    "--since", metavar="TIME", callback=_moment, help="Only records from TIME on: 2h, 2026-11-28."
)
@click.option("--until", metavar="TIME", callback=_moment, help="Only records before TIME.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="The most records to list, the newest ones.",
)
@view_options(_COLUMNS)
@database_url_option
@setting("audit-log", "The audit log.  [default: audit.jsonl next to an SQLite database]")
def audit(
    *,
    user: str | None,
    endpoint: str | None,
    function: str | None,
    event: str | None,
    since: float | None,
    until: float | None,
    limit: int,
    view: View,
    database_url: str | None,
    audit_log: str | None,
) -> None:
    """Show the audit log: who ran which function where, and who changed what; the newest last.

    --audit-log may also be that of an endpoint, which has each of its tasks.
    """
    path = Path(audit_log) if audit_log else audit_log_at(database_url)
    if path is None:
        raise ConfigurationError(
            "where is the audit log? Give --audit-log, as to `service run`: without it a service "
            "with this database keeps none"
        )
    with _names(database_url) as names:
        selected = _Filter(
            user,
            None if endpoint is None else _ids("endpoint", endpoint, names.endpoints_called),
            None if function is None else _ids("function", function, names.functions_called),
            event,
            since,
            until,
        )
        try:
            found, more = read_records(path, selected.matches, limit)
        except FileNotFoundError:
            raise NotFoundError(f"there is no audit log {path}") from None
        names.look_up(found)
    if view.as_json:
        put_json({"records": [_document(each, names) for each in found], "more": more})
        return
    if not found:
        click.echo("No such records.")
        return
    rows = [_row(each, names) for each in found]
    view.put(_COLUMNS, rows)
    if more:
        click.echo(f"There are older ones: --limit {2 * limit} shows more.", err=True)


@contextmanager
def _names(database_url: str | None) -> Iterator[_Names]:
    place = database_at(database_url)
    if isinstance(place, Path) and not place.exists():
        yield _Names(None)  # the log of an endpoint, on a machine without the service
        return
    database = open_database(database_url)
    with database.read() as connection:
        yield _Names(connection)
    database.close()


def _ids(noun: str, given: str, called: Callable[[str], list[str]]) -> frozenset[str]:
    """Return the ids of the things that have a name or an id.

    Raises:
        NotFoundError: it is no id, and nothing has the name.
    """
    try:
        return frozenset({str(UUID(given))})
    except ValueError:
        found = frozenset(called(given))
    if not found:
        raise NotFoundError(f"no {noun} of this service is called {given}, and it is no id")
    return found


def _event(record: Mapping[str, Any]) -> str:
    return str(record.get("event") or "-")


def _endpoint(record: Mapping[str, Any]) -> str | None:
    """Return the id of the endpoint that a record is about."""
    found = next((record[each] for each in _ENDPOINT_FIELDS if record.get(each)), None)
    return None if found is None else str(found)


def _users(record: Mapping[str, Any]) -> set[str]:
    listed = record.get("users")
    several = map(str, listed) if isinstance(listed, list) else ()
    return {str(record.get(field)) for field in ("user", "owner")} | set(several)


def _functions(record: Mapping[str, Any]) -> dict[str, int]:
    """Return the functions of a record, and the number of tasks of each."""
    found = record.get("functions")
    if isinstance(found, dict):
        return {str(its_id): count for its_id, count in found.items() if isinstance(count, int)}
    one = record.get("function_id")
    return {} if one is None else {str(one): 1}


def _time(record: Mapping[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(str(record.get("time"))).timestamp()
    except ValueError:
        return None


def _document(record: Mapping[str, Any], names: _Names) -> dict[str, Any]:
    functions = {
        its_id: names.functions[its_id]
        for its_id in _functions(record)
        if its_id in names.functions
    }
    endpoint = names.endpoints.get(_endpoint(record) or "")
    return {**record, "endpoint_name": endpoint, "function_names": functions}


def _row(record: Mapping[str, Any], names: _Names) -> Row:
    at = _time(record)
    endpoint = _endpoint(record)
    what = [
        f"{count} x {names.functions.get(its_id, its_id)}"
        for its_id, count in _functions(record).items()
    ]
    what += _fields(record)
    cells = [
        str(record.get("time")) if at is None else shown_moment(at),
        str(record.get("user") or "-"),
        _event(record),
        "-" if endpoint is None else names.endpoints.get(endpoint, endpoint),
        ", ".join(what) or "-",
        str(record.get("address") or "-"),
    ]
    return Row(cells, "bad" if "refused" in cells[2] else None)


def _fields(record: Mapping[str, Any]) -> Iterable[str]:
    for field, value in record.items():
        if field in _SHOWN or field in _ENDPOINT_FIELDS or value in (None, [], {}):
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        yield f"{field}={text}"
