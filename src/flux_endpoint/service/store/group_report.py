"""How far a task group is: its tasks by state, its failures by kind, and how fast tasks end."""

import re
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from flux_endpoint.protocol.fields import readable
from flux_endpoint.protocol.operations import FailureKind, GroupEndpoint, GroupReport
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.listing import running_tasks
from flux_endpoint.service.store.output import last_bytes, last_line
from flux_endpoint.service.store.tables import (
    dependents,
    endpoints,
    submissions,
    task_events,
    tasks,
)

#: The most failed tasks whose errors are read, the newest; bytes read of each; the most kinds.
MOST_ERRORS, _ERROR_BYTES, MOST_KINDS = 10_000, 300, 20
#: Seconds whose ends say how fast tasks end now; of a group without any, all of its time does.
RECENT = 600.0
#: The beginning of the last line of an error: the type of a Python exception, or an error code.
_KIND = re.compile(r"[A-Za-z_][\w.]*(?=:)")
_CANCELLED = f"{ErrorCode.CANCELLED}:".encode()


def group_report(connection: sa.Connection, group_id: str, now: float | None = None) -> GroupReport:
    """Return how far a task group is.

    Args:
        connection: a transaction.
        group_id: the group.
        now: seconds since the epoch; by default the present time.
    """
    now = time.time() if now is None else now
    cancelled = _is_cancelled()
    failed, ended = tasks.c.failed, tasks.c.completed_at.is_not(None)
    query = sa.select(
        sa.func.count().label("tasks"),
        _number(ended & ~failed).label("succeeded"),
        _number(ended & failed & ~cancelled).label("failed"),
        _number(ended & failed & cancelled).label("cancelled"),
        _number(ended & (tasks.c.completed_at >= now - RECENT)).label("recent"),
        sa.func.min(submissions.c.created_at).label("first"),
        sa.func.max(tasks.c.completed_at).label("last"),
    ).join_from(submissions, tasks)
    row = connection.execute(query.where(submissions.c.group_id == group_id)).one()
    left = row.tasks - row.succeeded - row.failed - row.cancelled
    rate = _rate(row, now) if left else None
    return GroupReport(
        task_group_id=group_id,
        tasks=row.tasks,
        succeeded=row.succeeded,
        failed=row.failed,
        cancelled=row.cancelled,
        unfinished=left,
        running=_running(connection, group_id) if left else 0,
        waiting_for_tasks=_dependents(connection, group_id) if left else 0,
        submitted=row.first,
        last_end=row.last,
        rate=rate,
        expected_end=now + left / rate if rate else None,
        failures=_failures(connection, group_id) if row.failed else [],
        endpoints=list(_endpoints(connection, group_id)),
    )


def _is_cancelled() -> sa.ColumnElement[bool]:
    return sa.func.substr(tasks.c.result, 1, len(_CANCELLED)) == _CANCELLED


def _number(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)


def _rate(row: Any, now: float) -> float | None:
    """Return how many tasks end per second."""
    if row.recent:
        return float(row.recent / min(RECENT, max(1.0, now - row.first)))
    ended = row.succeeded + row.failed + row.cancelled
    return float(ended / max(1.0, now - row.first)) if ended else None


def _of_group(group_id: str) -> sa.Select[tuple[str]]:
    """Return a query for the ids of a group's open tasks."""
    return (
        sa.select(tasks.c.id)
        .join_from(submissions, tasks)
        .where(submissions.c.group_id == group_id, tasks.c.completed_at.is_(None))
    )


def _running(connection: sa.Connection, group_id: str) -> int:
    """Return how many tasks run, by the reports of their endpoints and their jobs' events."""
    listed = sa.select(submissions.c.endpoint_id).where(submissions.c.group_id == group_id)
    found: set[str] = set()
    for endpoint_id in connection.scalars(listed.distinct()):
        found.update(running_tasks(connection, endpoint_id))
    on_workers: set[str] = set()
    for part in chunks(found):
        on_workers.update(connection.scalars(_of_group(group_id).where(tasks.c.id.in_(part))))
    names = "start", "finish"
    count = sa.func.count().label("number")
    events = sa.select(task_events.c.task_id, task_events.c.name, count).where(
        task_events.c.task_id.in_(_of_group(group_id)), task_events.c.name.in_(names)
    )
    started: dict[str, int] = {}
    for row in connection.execute(events.group_by(task_events.c.task_id, task_events.c.name)):
        sign = 1 if row.name == "start" else -1
        started[row.task_id] = started.get(row.task_id, 0) + sign * row.number
    return len(on_workers | {task_id for task_id, more in started.items() if more > 0})


def _dependents(connection: sa.Connection, group_id: str) -> int:
    query = sa.select(sa.func.count()).where(
        dependents.c.task_id.in_(_of_group(group_id)), dependents.c.unmet > 0
    )
    return connection.scalar(query) or 0


def _failures(connection: sa.Connection, group_id: str) -> list[FailureKind]:
    """Return the kinds of errors, the most frequent first."""
    query = (
        sa.select(tasks.c.id, last_bytes(tasks.c.result, _ERROR_BYTES).label("error"))
        .join_from(submissions, tasks)
        .where(submissions.c.group_id == group_id, tasks.c.failed, ~_is_cancelled())
        .order_by(tasks.c.id.desc())
        .limit(MOST_ERRORS)
    )
    kinds: dict[str, FailureKind] = {}
    for row in connection.execute(query):
        line = readable(last_line(row.error))
        named = _KIND.match(line)
        kind = named[0] if named else "other"
        known = kinds.setdefault(kind, FailureKind(kind=kind, tasks=0, task_id=row.id, error=line))
        known.tasks += 1
    return sorted(kinds.values(), key=lambda each: -each.tasks)[:MOST_KINDS]


def _endpoints(connection: sa.Connection, group_id: str) -> Iterator[GroupEndpoint]:
    """Yield the endpoints that the group's tasks were submitted to, each with its open tasks."""
    shown = sa.func.coalesce(endpoints.c.parent_id, endpoints.c.id).label("shown")
    query = (
        sa.select(
            shown,
            sa.func.count().label("tasks"),
            _number(tasks.c.completed_at.is_(None)).label("unfinished"),
        )
        .join_from(submissions, tasks)
        .join(endpoints, endpoints.c.id == submissions.c.endpoint_id)
        .where(submissions.c.group_id == group_id)
        .group_by(shown)
    )
    rows = connection.execute(query).all()
    ids = [row.shown for row in rows]
    named = connection.execute(
        sa.select(endpoints.c.id, endpoints.c.name).where(endpoints.c.id.in_(ids))
    )
    names = {row.id: row.name for row in named}
    for row in rows:
        name = names.get(row.shown, row.shown)
        yield GroupEndpoint(
            endpoint_id=row.shown, name=name, tasks=row.tasks, unfinished=row.unfinished
        )
