"""Tasks that wait for a worker, and the ends of those that get none."""

from __future__ import annotations

from collections import deque

from flux_endpoint.engine import results
from flux_endpoint.engine.attempts import KeptAttempts, failure_text
from flux_endpoint.engine.base import EngineResult
from flux_endpoint.engine.workers.records import Entry
from flux_endpoint.protocol.states import ErrorCode


class Backlog:
    """The tasks that no manager has, in the order in which they are to be run.

    Args:
        retries: how often a task is tried again that lost its worker through no fault of its own.
        kept: remembers the attempts of what is left for an engine to come.
    """

    def __init__(self, retries: int, kept: KeptAttempts) -> None:
        self._entries: deque[Entry] = deque()
        self._retries = retries
        self._kept = kept

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, entry: Entry) -> None:
        """Queue a task behind all others."""
        self._entries.append(entry)

    def take(self) -> Entry:
        """Return the task that is to be run next, which waits no more."""
        return self._entries.popleft()

    def requeue(self, entry: Entry) -> None:
        """Queue a task before all others: it was given to a manager, and not started."""
        if entry.cancelled:
            self.end_cancelled(entry)
        else:
            self._entries.appendleft(entry)

    def retry_or_fail(self, entry: Entry, reason: str) -> None:
        """Queue a task before all others that was lost while it ran, or end it."""
        if entry.cancelled:
            self.end_cancelled(entry)
            return
        entry.attempts.append(reason)
        if len(entry.attempts) <= self._retries:
            self._entries.appendleft(entry)
            return
        _fail(entry, ErrorCode.WORKER_LOST, failure_text("WorkerLost", entry.attempts))

    def find(self, task_id: str) -> Entry | None:
        """Return a task that waits here."""
        return next((each for each in self._entries if each.task.task_id == task_id), None)

    def cancel(self, entry: Entry) -> None:
        """End a task that waits here, on request."""
        self._entries.remove(entry)
        self.end_cancelled(entry)

    def end_cancelled(self, entry: Entry) -> None:
        """End a task that nobody has any more, on request."""
        _fail(entry, ErrorCode.CANCELLED, "TaskCancelled: the task was ended on request")

    def fail_all(self, text: str) -> None:
        """End every task: there will be no workers."""
        while self._entries:
            _fail(self._entries.popleft(), ErrorCode.WORKER_LOST, text)

    def keep_attempts(self) -> None:
        """Note the attempts at what waits, for an engine to come."""
        for entry in self._entries:
            if entry.attempts and not entry.formats:
                self._kept.keep(entry.task.task_id, entry.attempts)


def _fail(entry: Entry, code: ErrorCode, text: str) -> None:
    task_id = entry.task.task_id
    entry.on_result(EngineResult(task_id, results.failure(task_id, code, text)))
