"""Forgetting: the thread that removes what is older, or more, than is to be kept.

It looks through the submissions from the oldest on, which are in that order on the disk, so that
nothing has to be indexed by the time of its end. Then it sleeps until the next task is due. It
removes in small transactions, between which others write.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from flux_endpoint.logs import event
from flux_endpoint.service.store import retention
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

T = TypeVar("T")

DAY = 86_400.0

#: However much a user has, a result that came within so many seconds stays.
AT_LEAST = 3600.0

_PAGE = 200
# Between two transactions, so that others get the database.
_PAUSE = 0.02
# What is due is removed together with what will be within this part of the time it is kept.
_GRAIN = 0.01
_LEAST_SLEEP = 0.05
_RETRY = 60.0


@dataclass(frozen=True)
class Keep:
    """How long, and how much, is kept.

    Attributes:
        tasks: seconds after its end for which a task is known, with its result and events.
        functions: seconds after their last use for which functions are known.
        user_bytes: bytes of results for each user; the oldest go first.
    """

    tasks: float = 14 * DAY
    functions: float = 90 * DAY
    user_bytes: float = 10 * 2.0**30


class Retention:
    """Owns the removal; its methods are for any thread.

    Args:
        database: where from.
        keep: what is kept.
    """

    def __init__(self, database: Database, keep: Keep) -> None:
        self._database = database
        self._keep = keep
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._new_bytes = 0
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Begin; what is due already goes first."""
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop after the transaction at hand."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout)

    def stored(self, size: int) -> None:
        """Tell that results of `size` bytes were stored: a user may have too many now."""
        with self._lock:
            self._new_bytes += size
            if self._new_bytes > self._keep.user_bytes / 8:
                self._new_bytes = 0
                self._wake.set()

    # What follows runs on the thread.

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                due = self._remove_all()
            except SQLAlchemyError as error:  # busy, full or away: that passes
                event(log, logging.ERROR, "old records not removed", reason=error, retry_in=_RETRY)
                due = time.time() + _RETRY
            self._wake.wait(None if due == math.inf else max(due - time.time(), _LEAST_SLEEP))

    def _remove_all(self) -> float:
        """Remove what is due, and return when more will be (seconds since the epoch)."""
        removed, due = self._remove_old_tasks()
        removed += self._remove_more_than_fits()
        now = time.time()
        cutoff = now - self._keep.tasks
        groups = self._repeatedly(lambda: self._write(retention.remove_empty_groups, cutoff))
        unused = self._repeatedly(
            lambda: self._write(retention.remove_functions, now - self._keep.functions, cutoff)
        )
        if removed or groups or unused:
            event(
                log,
                logging.INFO,
                "old records removed",
                tasks=removed,
                task_groups=groups,
                functions=unused,
            )
        while not self._stopping.is_set() and retention.give_back_space(self._database):
            self._stopping.wait(_PAUSE)
        # Functions and groups are in no such order: once in a while will do.
        return min(due, now + max(min(self._keep.tasks, self._keep.functions) / 4, _LEAST_SLEEP))

    def _remove_old_tasks(self) -> tuple[int, float]:
        """Remove tasks by their age; return how many, and when the next is due."""
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
        # What comes from now on is due this long after.
        return removed, min(due, time.time() + self._keep.tasks + grain)

    def _remove_ended(self, submission_ids: list[str], cutoff: float) -> int:
        def step() -> int:
            with self._database.read() as connection:
                found = retention.ended_tasks(connection, submission_ids, cutoff)
            if found:
                self._write(retention.remove_tasks, [each.id for each in found])
            return len(found)

        return self._repeatedly(step)

    def _remove_more_than_fits(self) -> int:
        """Remove the oldest results of users who have more bytes of them than they may."""
        most = self._keep.user_bytes
        with self._database.read() as connection:
            if retention.stored_bytes(connection) <= most:
                return 0  # nobody alone has more than there is in all
            until = time.time() - AT_LEAST
            sizes = retention.result_bytes(connection, until)
        removed = 0
        for owner_id, size in sizes.items():
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
                self._write(retention.remove_tasks, ids)
                count += len(ids)
                self._stopping.wait(_PAUSE)
            if count:
                event(
                    log,
                    logging.WARNING,
                    "results removed before their time: a user has more than is kept",
                    user_id=owner_id,
                    tasks=count,
                    kept_bytes=most,
                )
            removed += count
        return removed

    def _repeatedly(self, step: Callable[[], int]) -> int:
        """Take steps until one removes nothing; return what they removed."""
        removed = 0
        while not self._stopping.is_set() and (count := step()):
            removed += count
            self._stopping.wait(_PAUSE)
        return removed

    def _write(self, act: Callable[..., T], *arguments: object) -> T:
        with self._database.write() as connection:
            return act(connection, *arguments)
