"""The thread that removes records which are too old, or exceed a user's limit.

It sleeps until the next task is due.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from flux_endpoint.logs import event
from flux_endpoint.service.changes import ChangeListener, ReportedEnd
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.sweep import Keep, Sweep

log = logging.getLogger(__name__)

_LEAST_SLEEP = 0.05
_RETRY = 60.0


class Retention(ChangeListener):
    """Removes old records on its own thread. Safe to use from several threads.

    Args:
        database: the service's database.
        keep: how long, and how many, records are kept.
    """

    def __init__(self, database: Database, keep: Keep) -> None:
        self._keep = keep
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._new_bytes = 0
        self._sweep = Sweep(database, keep, self._stopping)
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Begin; records that are already due are removed at once."""
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop after the current transaction, within `timeout` seconds."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout)

    def tasks_ended(self, ends: Sequence[ReportedEnd]) -> None:
        """Record that results were stored: a user may exceed the limit now."""
        with self._lock:
            self._new_bytes += sum(each.size + each.printed for each in ends)
            if self._new_bytes > self._sweep.least_bytes / 8:
                self._new_bytes = 0
                self._wake.set()

    # The following methods run on the thread.

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                due = self._remove_all()
            except SQLAlchemyError as error:  # busy, full or unreachable: try again
                event(log, logging.ERROR, "old records not removed", reason=error, retry_in=_RETRY)
                due = time.time() + _RETRY
            self._wake.wait(None if due == math.inf else max(due - time.time(), _LEAST_SLEEP))

    def _remove_all(self) -> float:
        """Remove all due records; return when the next are due (seconds since the epoch)."""
        removed, due = self._sweep.run()
        if removed:
            event(
                log,
                logging.INFO,
                "old records removed",
                tasks=removed.tasks + removed.beyond_limit,
                task_groups=removed.task_groups,
                functions=removed.functions,
            )
        # Functions and groups are not ordered by time: check them at long intervals.
        shortest = min(self._keep.tasks, self._keep.functions)
        return min(due, time.time() + max(shortest / 4, _LEAST_SLEEP))
