"""The cache of results: which task had which call. The results are those of the tasks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from flux_endpoint.protocol.envelope import RETURNCODE
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import cached_calls, functions, submissions, tasks

#: Maximum number of calls that are kept for each user; the oldest are forgotten first.
MAX_CALLS = 100_000

# A command has succeeded with exit code 0; functions have none.
_CODE = tasks.c.details[RETURNCODE].as_string()
_SUCCEEDED = (
    tasks.c.completed_at.is_not(None)
    & tasks.c.failed.is_(False)
    & (sa.func.coalesce(_CODE, "0") == "0")
)


@dataclass(frozen=True)
class CachedResults:
    """The cached results of the functions of one name.

    Attributes:
        function_name: the name.
        results: number of results.
        size: their bytes.
        newest: time of the newest one (seconds since the epoch).
    """

    function_name: str
    results: int
    size: int
    newest: float


def find(connection: sa.Connection, owner_id: str, keys: Iterable[str]) -> dict[str, str]:
    """Return the tasks of a user that had these calls and have succeeded, by key.

    Args:
        connection: a transaction.
        owner_id: id of the user.
        keys: the calls.
    """
    found: dict[str, str] = {}
    for part in chunks(list(keys)):
        query = (
            sa.select(cached_calls.c.key, cached_calls.c.task_id)
            .join_from(cached_calls, tasks)
            .where(
                cached_calls.c.owner_id == owner_id,
                cached_calls.c.key.in_(part),
                _SUCCEEDED,
            )
        )
        found.update((row.key, row.task_id) for row in connection.execute(query))
    return found


def add(connection: sa.Connection, owner_id: str, entries: Mapping[str, str]) -> None:
    """Note the calls of a user's tasks, in place of earlier tasks; other users' are left out.

    Args:
        connection: a transaction that writes.
        owner_id: id of the user.
        entries: tasks by call.
    """
    known: set[str] = set()
    for part in chunks(sorted(set(entries.values()))):
        query = (
            sa.select(tasks.c.id)
            .join_from(tasks, submissions)
            .where(tasks.c.id.in_(part), submissions.c.owner_id == owner_id)
            # The foreign key locks them, too, but in the order of the keys: two transactions of
            # PostgreSQL could wait for each other, one of which stores results.
            .order_by(tasks.c.id)
            .with_for_update(of=tasks, read=True, key_share=True)
        )
        known.update(connection.scalars(query))
    rows = [
        {"owner_id": owner_id, "key": key, "task_id": task_id}
        for key, task_id in sorted(entries.items())  # always the same order of locks
        if task_id in known
    ]
    _remove(connection, owner_id, [row["key"] for row in rows])
    if rows:
        connection.execute(sa.insert(cached_calls), rows)
        _forget_oldest(connection, owner_id)


def _remove(connection: sa.Connection, owner_id: str, keys: list[str]) -> None:
    for part in chunks(keys):
        connection.execute(
            sa.delete(cached_calls).where(
                cached_calls.c.owner_id == owner_id, cached_calls.c.key.in_(part)
            )
        )


def _forget_oldest(connection: sa.Connection, owner_id: str) -> None:
    own = cached_calls.c.owner_id == owner_id
    # Ids of tasks are in the order of their times.
    beyond = (
        sa.select(cached_calls.c.task_id)
        .where(own)
        .order_by(cached_calls.c.task_id.desc())
        .offset(MAX_CALLS)
        .limit(1)
    )
    oldest = connection.scalar(beyond)
    if oldest is not None:
        connection.execute(sa.delete(cached_calls).where(own, cached_calls.c.task_id <= oldest))


def contents(connection: sa.Connection, owner_id: str) -> list[CachedResults]:
    """Return what the cache has for a user, by name of the function, the most results first."""
    count = sa.func.count().label("results")
    query = (
        sa.select(
            functions.c.name,
            count,
            sa.func.coalesce(sa.func.sum(sa.func.length(tasks.c.result)), 0).label("size"),
            sa.func.max(tasks.c.completed_at).label("newest"),
        )
        .select_from(cached_calls)
        .join(tasks)
        .join(functions, functions.c.id == tasks.c.function_id)
        .where(cached_calls.c.owner_id == owner_id, _SUCCEEDED)
        .group_by(functions.c.name)
        .order_by(count.desc(), functions.c.name)
    )
    return [
        CachedResults(row.name, row.results, int(row.size), row.newest)
        for row in connection.execute(query)
    ]


def clear(connection: sa.Connection, owner_id: str, function_name: str | None) -> int:
    """Forget the calls of a user, or those of functions of one name; return their number.

    The tasks and their results stay.

    Args:
        connection: a transaction that writes.
        owner_id: id of the user.
        function_name: the name; `None`: all functions.
    """
    removal = sa.delete(cached_calls).where(cached_calls.c.owner_id == owner_id)
    if function_name is not None:
        of_function = (
            sa.select(tasks.c.id)
            .join_from(tasks, functions)
            .where(functions.c.name == function_name, tasks.c.id == cached_calls.c.task_id)
        )
        removal = removal.where(sa.exists(of_function.correlate(cached_calls)))
    return connection.execute(removal).rowcount
