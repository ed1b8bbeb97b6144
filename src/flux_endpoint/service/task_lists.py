"""Answers a list of tasks: its filter, its length, and how long it may search."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import sqlalchemy as sa

from flux_endpoint.protocol.operations import (
    ENDED_STATES,
    OPEN_STATES,
    ListedState,
    ListedTask,
    ListTasks,
    TasksAnswer,
)
from flux_endpoint.service.errors import invalid_field
from flux_endpoint.service.store.listing import PagePosition, Wanted, newest_tasks


def find_tasks(
    connection: sa.Connection,
    owner_id: str | None,
    query: ListTasks,
    *,
    function: str = "",
    task_ids: frozenset[str] | None = None,
    patience: float = math.inf,
) -> TasksAnswer:
    """Return a user's tasks, newest first.

    Args:
        connection: a transaction.
        owner_id: id of the user; `None`: all users.
        query: the filter, and the length of the list.
        function: only tasks of functions with this in their names, in any case.
        task_ids: only tasks among these.
        patience: seconds after which it answers with what it has found. The list then is shorter,
            and `next` says where the search ended.

    Raises:
        ServiceError: `query.before` is no place in a list.
    """
    states = frozenset(query.state or ListedState)
    try:
        after = PagePosition.parse(query.before) if query.before is not None else None
    except ValueError as error:
        raise invalid_field("before", str(error)) from error
    # The database can filter by these two only; `matches` filters by the exact state.
    ended = True if states <= ENDED_STATES else False if states <= OPEN_STATES else None
    succeeded = ListedState.SUCCESS in states
    failed = None if not ended or (succeeded and len(states) > 1) else not succeeded
    wanted = Wanted(
        owner_id,
        query.endpoint_id,
        query.task_group_id,
        ended,
        failed,
        follows=query.follows,
        jobid=query.jobid,
        task_ids=task_ids,
    )
    search = _Search(patience)
    named = function.casefold()

    def matches(task: ListedTask) -> bool:
        return task.state in states and named in (task.function_name or "").casefold()

    found = newest_tasks(connection, wanted, after, search.may_go_on)
    return _answer(((place, task) for place, task in found if matches(task)), query.limit, search)


class _Search:
    """Ends a search that takes too long, and remembers where."""

    def __init__(self, patience: float) -> None:
        self._until = time.monotonic() + patience
        self.ended_at: PagePosition | None = None

    def may_go_on(self, place: PagePosition) -> bool:
        if time.monotonic() < self._until:
            return True
        self.ended_at = place
        return False


def _answer(
    found: Iterator[tuple[PagePosition, ListedTask]], limit: int, search: _Search
) -> TasksAnswer:
    listed: list[ListedTask] = []
    last: PagePosition | None = None
    for place, task in found:
        if len(listed) == limit:
            return TasksAnswer(tasks=listed, next=str(last))
        listed.append(task)
        last = place
    return TasksAnswer(tasks=listed, next=search.ended_at and str(search.ended_at))
