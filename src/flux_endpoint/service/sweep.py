"""Removes records that are too old, or exceed a user's limit, in small transactions.

It scans the submissions from the oldest on. They are stored in that order, so no index by end time
is needed. Transactions are small, so that other writers don't wait long.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flux_endpoint.logs import event
from flux_endpoint.service.store import retention
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

T = TypeVar("T")

DAY = 86_400.0

#: Seconds for which a result is kept, even if its user exceeds the limit.
MIN_KEEP_SECONDS = 3600.0

_PAGE = 200
# Seconds between two transactions, in which others can write.
_PAUSE = 0.02
# Removal is batched: it waits for this fraction of the retention time after a record is due.
_GRAIN = 0.01


@dataclass(frozen=True)
class Keep:
    """The limits of the records that are kept.

    Attributes:
        tasks: seconds for which a task is kept after its end, with its result and events.
        functions: seconds for which a function is kept after its last use.
        user_bytes: maximum bytes of results of each user for whom none is set; the oldest are
            removed first.
    """

    tasks: float = 14 * DAY
    functions: float = 90 * DAY
    user_bytes: float = 10 * 2.0**30


@dataclass
class Removed:
    """Numbers of removed records.

    Attributes:
        tasks: tasks that ended too long ago.
        beyond_limit: tasks whose results exceeded their user's limit.
        task_groups: task groups without tasks.
        functions: functions that were not used for long, or deleted.
    """

    tasks: int = 0
    beyond_limit: int = 0
    task_groups: int = 0
    functions: int = 0

    def __bool__(self) -> bool:
        return bool(self.tasks or self.beyond_limit or self.task_groups or self.functions)


class Sweep:
    """Removes all records that are due. For one thread.

    Args:
        database: the service's database.
        keep: how long, and how many, records are kept.
        stopping: ends it after the current transaction.
        on_tasks: called after each transaction that removed tasks, with their number.

    Attributes:
        least_bytes: lowest limit on the results of any user, when it last ran.
    """

    def __init__(
        self,
        database: Database,
        keep: Keep,
        stopping: threading.Event | None = None,
        on_tasks: Callable[[int], object] = lambda _count: None,
    ) -> None:
        self._database = database
        self._keep = keep
        self._stopping = stopping or threading.Event()
        self._on_tasks = on_tasks
        self.least_bytes = keep.user_bytes

    def run(self) -> tuple[Removed, float]:
        """Remove all due records.

        Returns:
            What was removed, and when the next tasks are due (seconds since the epoch).

        Raises:
            SQLAlchemyError: the database is busy, full or unreachable. Complete transactions stay.
        """
        removed = Removed()
        removed.tasks, due = self._remove_old_tasks()
        removed.beyond_limit = self._remove_more_than_fits()
        now = time.time()
        cutoff = now - self._keep.tasks
        removed.task_groups = self._repeatedly(
            lambda: self._write(retention.remove_empty_groups, cutoff)
        )
        removed.functions = self._repeatedly(
            lambda: self._write(retention.remove_functions, now - self._keep.functions, cutoff)
        )
        while not self._stopping.is_set() and retention.give_back_space(self._database):
            self._stopping.wait(_PAUSE)
        return removed, due

    def _remove_old_tasks(self) -> tuple[int, float]:
        """Remove tasks by age; return their number, and when the next one is due."""
        removed, due, after_id = 0, math.inf, ""
        grain = self._keep.tasks * _GRAIN
        if self._keep.tasks == math.inf:
            return 0, math.inf
        while not self._stopping.is_set():
            cutoff = time.time() - self._keep.tasks
            with self._database.read() as connection:
                page = retention.oldest_submissions(connection, after_id, _PAGE)
            old = [each.id for each in page if each.created_at <= cutoff]
            removed += self._remove_ended(old, cutoff)
            if old:
                with self._database.write() as connection:
                    retention.remove_empty_submissions(connection, old)
                with self._database.read() as connection:
                    end = retention.first_end(connection, old)
                if end is not None:
                    due = min(due, end + self._keep.tasks + grain)
            if len(old) < len(page):
                newer = next(each for each in page if each.created_at > cutoff)
                return removed, min(due, newer.created_at + self._keep.tasks + grain)
            if len(page) < _PAGE:
                break
            after_id = page[-1].id
        # Tasks that are submitted from now on are due after this time.
        return removed, min(due, time.time() + self._keep.tasks + grain)

    def _remove_ended(self, submission_ids: list[str], cutoff: float) -> int:
        def step() -> int:
            with self._database.read() as connection:
                found = retention.ended_tasks(connection, submission_ids, cutoff)
            if found:
                self._remove_tasks([each.id for each in found])
            return len(found)

        return self._repeatedly(step)

    def _remove_more_than_fits(self) -> int:
        """Remove the oldest results of users who exceed their limit; return the number."""
        with self._database.read() as connection:
            own = retention.own_result_limits(connection)
            self.least_bytes = min([self._keep.user_bytes, *own.values()])
            if retention.stored_bytes(connection) <= self.least_bytes:
                return 0  # the total is below the limit of each user
            until = time.time() - MIN_KEEP_SECONDS
            sizes = retention.result_bytes(connection, until)
        removed = 0
        for owner_id, size in sizes.items():
            most = own.get(owner_id, self._keep.user_bytes)
            over = size - most
            count = 0
            while over > 0 and not self._stopping.is_set():
                with self._database.read() as connection:
                    found = retention.ended_tasks_of(connection, owner_id, until)
                ids = []
                for each in found:
                    ids.append(each.id)
                    over -= each.size
                    if over <= 0:
                        break
                if not ids:
                    break
                self._remove_tasks(ids)
                count += len(ids)
                self._stopping.wait(_PAUSE)
            if count:
                event(
                    log,
                    logging.WARNING,
                    "results removed early: a user exceeds the limit",
                    user_id=owner_id,
                    tasks=count,
                    kept_bytes=most,
                )
            removed += count
        return removed

    def _repeatedly(self, step: Callable[[], int]) -> int:
        """Call `step` until it removes nothing; return the number of removed records."""
        removed = 0
        while not self._stopping.is_set() and (count := step()):
            removed += count
            self._stopping.wait(_PAUSE)
        return removed

    def _remove_tasks(self, task_ids: list[str]) -> None:
        self._write(retention.remove_tasks, task_ids)
        self._on_tasks(len(task_ids))

    def _write(self, act: Callable[..., T], *arguments: object) -> T:
        with self._database.write() as connection:
            return act(connection, *arguments)
