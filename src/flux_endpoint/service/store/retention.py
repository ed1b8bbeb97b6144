"""Finds and removes old records in small steps. Open tasks are never removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from flux_endpoint.service.store.engine import Database, chunks
from flux_endpoint.service.store.tables import (
    deliveries,
    dependencies,
    dependents,
    functions,
    submissions,
    task_events,
    task_groups,
    task_output,
    tasks,
    users,
)

#: Maximum number of tasks, and of bytes of their results, that one transaction removes.
STEP_TASKS = 500
STEP_BYTES = 64 * 2**20

#: Bytes of a task's result, and of what it has printed.
RESULT_BYTES = sa.func.coalesce(sa.func.length(tasks.c.result), 0) + sa.func.coalesce(
    sa.select(sa.func.length(task_output.c.stdout) + sa.func.length(task_output.c.stderr))
    .where(task_output.c.task_id == tasks.c.id)
    .correlate(tasks)
    .scalar_subquery(),
    0,
)

# Minimum number, and minimum fraction, of unused pages at which an SQLite file is shrunk.
_UNUSED_PAGES = 250
_UNUSED_PART = 0.25
_VACUUM_PAGES = 500


@dataclass(frozen=True)
class OldSubmission:
    """A submission and its time (seconds since the epoch)."""

    id: str
    created_at: float


@dataclass(frozen=True)
class EndedTask:
    """A task that has ended, and the bytes of its result and output."""

    id: str
    size: int


def oldest_submissions(connection: sa.Connection, after_id: str, limit: int) -> list[OldSubmission]:
    """Return the next submissions in the order of their ids, and so of their times.

    Args:
        connection: a transaction.
        after_id: only submissions with greater ids.
        limit: maximum number.
    """
    query = (
        sa.select(submissions.c.id, submissions.c.created_at)
        .where(submissions.c.id > after_id)
        .order_by(submissions.c.id)
        .limit(limit)
    )
    return [OldSubmission(row.id, row.created_at) for row in connection.execute(query)]


def ended_tasks(
    connection: sa.Connection, submission_ids: Sequence[str], until: float
) -> list[EndedTask]:
    """Return ended tasks of submissions, as many as one step may remove.

    Args:
        connection: a transaction.
        submission_ids: the submissions.
        until: only tasks that ended until this time (seconds since the epoch).
    """
    found: list[EndedTask] = []
    for part in chunks(submission_ids):
        query = _ended(until).where(tasks.c.submission_id.in_(part)).limit(STEP_TASKS - len(found))
        found += _step(connection, query)
        if len(found) == STEP_TASKS:
            break
    return found


def ended_tasks_of(connection: sa.Connection, owner_id: str, until: float) -> list[EndedTask]:
    """Return a user's ended tasks, oldest first, as many as one step may remove.

    Args:
        connection: a transaction.
        owner_id: id of the user.
        until: only tasks that ended until this time (seconds since the epoch).
    """
    query = (
        _ended(until)
        .join_from(tasks, submissions)
        .where(submissions.c.owner_id == owner_id)
        .order_by(submissions.c.id, tasks.c.position)
        .limit(STEP_TASKS)
    )
    return _step(connection, query)


def first_end(connection: sa.Connection, submission_ids: Sequence[str]) -> float | None:
    """Return when the first task of some submissions ended (seconds since the epoch).

    `None`: none of their tasks has ended.
    """
    ends = [
        connection.scalar(
            sa.select(sa.func.min(tasks.c.completed_at)).where(tasks.c.submission_id.in_(part))
        )
        for part in chunks(submission_ids)
    ]
    return min((each for each in ends if each is not None), default=None)


def remove_tasks(connection: sa.Connection, task_ids: Sequence[str]) -> None:
    """Remove tasks that have ended, with their results and events."""
    for part in chunks(task_ids):
        for table in (task_events, deliveries, dependents, task_output):
            connection.execute(sa.delete(table).where(table.c.task_id.in_(part)))
        ended = tasks.c.completed_at.is_not(None)
        connection.execute(sa.delete(tasks).where(tasks.c.id.in_(part), ended))


def remove_empty_submissions(connection: sa.Connection, submission_ids: Sequence[str]) -> int:
    """Remove the submissions that have no task any more; return their number."""
    removed = 0
    has_tasks = sa.exists().where(tasks.c.submission_id == submissions.c.id)
    for part in chunks(submission_ids):
        removal = sa.delete(submissions).where(submissions.c.id.in_(part), ~has_tasks)
        removed += connection.execute(removal).rowcount
    return removed


def remove_empty_groups(connection: sa.Connection, until: float) -> int:
    """Remove task groups without submissions in one step; return their number.

    Args:
        connection: a transaction that writes.
        until: only groups that were created until this time (seconds since the epoch).
    """
    used = sa.exists().where(submissions.c.group_id == task_groups.c.id)
    old = (
        sa.select(task_groups.c.id)
        .where(task_groups.c.created_at <= until, ~used)
        .limit(STEP_TASKS)
    )
    ids = connection.scalars(old).all()
    connection.execute(sa.delete(task_groups).where(task_groups.c.id.in_(ids), ~used))
    return len(ids)


def remove_functions(connection: sa.Connection, unused_until: float, deleted_until: float) -> int:
    """Remove functions without stored tasks in one step; return their number.

    Times are in seconds since the epoch.

    Args:
        connection: a transaction that writes.
        unused_until: remove functions that were last used (or registered) until this time.
        deleted_until: remove functions that were deleted until this time.
    """
    has_tasks = sa.exists().where(tasks.c.function_id == functions.c.id)
    unused = sa.func.coalesce(functions.c.used_at, functions.c.created_at) <= unused_until
    old = (
        sa.select(functions.c.id)
        .where(unused | (functions.c.deleted_at <= deleted_until), ~has_tasks)
        .limit(STEP_TASKS)
    )
    ids = connection.scalars(old).all()
    connection.execute(sa.delete(functions).where(functions.c.id.in_(ids)))
    return len(ids)


def stored_bytes(connection: sa.Connection) -> int:
    """Return the size of the database in bytes, without reusable free space in an SQLite file."""
    if connection.dialect.name != "sqlite":
        size = sa.func.pg_database_size(sa.func.current_database())
        return int(connection.scalar(sa.select(size)) or 0)
    pages, free, size = (
        connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def result_bytes(connection: sa.Connection, until: float) -> dict[str, int]:
    """Return the bytes of results and output of each user, by user id.

    Args:
        connection: a transaction.
        until: only results that arrived until this time (seconds since the epoch).
    """
    query = (
        sa.select(submissions.c.owner_id, sa.func.sum(RESULT_BYTES))
        .join_from(tasks, submissions)
        .where(tasks.c.completed_at <= until)
        .group_by(submissions.c.owner_id)
    )
    return {owner_id: int(size or 0) for owner_id, size in connection.execute(query)}


def own_result_limits(connection: sa.Connection) -> dict[str, float]:
    """Return the maximum bytes of results of users for whom it is set, by user id."""
    query = sa.select(users.c.id, users.c.limits).where(users.c.limits.is_not(None))
    return {
        user_id: float(limits["keep_user_results"])
        for user_id, limits in connection.execute(query)
        if "keep_user_results" in limits
    }


def give_back_space(database: Database) -> bool:
    """Return some unused space of an SQLite file to the file system.

    Returns:
        Whether there may be more.
    """
    with database.read() as connection:
        if connection.dialect.name != "sqlite":
            return False  # PostgreSQL does so by itself
        pages, free, mode = (
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("page_count", "freelist_count", "auto_vacuum")
        )
    if mode != 2 or free < max(_UNUSED_PAGES, _UNUSED_PART * pages):
        return False
    database.give_back(_VACUUM_PAGES)
    return True


def _ended(until: float) -> sa.Select[Any]:
    # A task that waits for others takes this one's result later.
    needed = sa.exists().where(dependencies.c.needs_id == tasks.c.id)
    return sa.select(tasks.c.id, RESULT_BYTES).where(tasks.c.completed_at <= until, ~needed)


def _step(connection: sa.Connection, query: sa.Select[Any]) -> list[EndedTask]:
    found: list[EndedTask] = []
    size = 0
    with connection.execute(query) as rows:
        for task_id, length in rows:
            size += length
            if found and size > STEP_BYTES:
                break
            found.append(EndedTask(task_id, length))
    return found
