"""An index of an engine's tasks: the place of each, and its earlier attempts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from flux_endpoint.engine.attempts import KeptAttempts


class TaskPlace(Enum):
    """The part of an engine that has a task."""

    WORKERS = "workers"
    #: A worker formats its command; then it becomes a job.
    FORMATTING = "formatting"
    JOBS = "jobs"


@dataclass
class _Known:
    place: TaskPlace
    #: Why each earlier attempt has failed.
    attempts: list[str] = field(default_factory=list)
    #: Whether it was cancelled while its command was formatted.
    cancelled: bool = False
    #: Set while its command was formatted.
    urgency: int | None = None


class TaskIndex:
    """The unfinished tasks of one engine. For any thread.

    Args:
        kept: attempts by earlier engines.
    """

    def __init__(self, kept: KeptAttempts) -> None:
        self._kept = kept
        self._earlier: dict[str, list[str]] = {}
        self._tasks: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def load(self) -> None:
        """Read the attempts by earlier engines."""
        self._earlier = self._kept.load()

    def add(self, task_id: str, place: TaskPlace, attempts: Sequence[str]) -> list[str]:
        """Add a task that is about to be given to `place`.

        Args:
            task_id: the task.
            place: the part that gets it.
            attempts: why attempts elsewhere have failed; default: those that earlier engines noted.

        Returns:
            The attempts.
        """
        with self._lock:
            earlier = self._earlier.pop(task_id, [])
            self._tasks[task_id] = _Known(place, list(attempts) or earlier)
            return list(self._tasks[task_id].attempts)

    def cancel(self, task_id: str) -> TaskPlace | None:
        """Record that a task should end; return the part that has it and must be notified."""
        with self._lock:
            known = self._tasks.get(task_id)
            if known is None:
                return None
            known.cancelled = known.place is TaskPlace.FORMATTING
            return known.place

    def set_urgency(self, task_id: str, urgency: int) -> TaskPlace | None:
        """Record a task's urgency; return the part that has it and must be notified."""
        with self._lock:
            known = self._tasks.get(task_id)
            if known is None:
                return None
            if known.place is TaskPlace.FORMATTING:
                known.urgency = urgency
            return known.place

    def place(self, task_id: str) -> TaskPlace | None:
        """Return the part that has a task."""
        known = self._tasks.get(task_id)
        return None if known is None else known.place

    def begin_job(self, task_id: str, submit: Callable[[list[str], int | None], None]) -> bool:
        """Turn a formatted task into a job, unless it was cancelled in the meantime.

        Args:
            task_id: the task.
            submit: hands it over, called with the attempts, and the urgency that it got in the
                meantime. A concurrent `cancel` waits for it, so that it reaches the job.

        Returns:
            Whether it was handed over.
        """
        with self._lock:
            known = self._tasks.get(task_id)
            if known is None or known.cancelled:
                return False
            known.place = TaskPlace.JOBS
            submit(list(known.attempts), known.urgency)
            return True

    def was_cancelled(self, task_id: str) -> bool:
        """Return whether a task was cancelled while its command was formatted."""
        known = self._tasks.get(task_id)
        return known is not None and known.cancelled

    def end(self, task_id: str) -> None:
        """Forget a task that has ended, and its attempts."""
        with self._lock:
            known = self._tasks.pop(task_id, None)
        if known is not None and known.attempts:
            self._kept.forget(task_id)

    def leave(self, task_id: str) -> list[str]:
        """Forget a task that is left without a result; return its earlier attempts."""
        with self._lock:
            known = self._tasks.pop(task_id, None)
        return [] if known is None else known.attempts

    def keep(self, task_id: str, attempts: list[str]) -> None:
        """Record the attempts of a task that is left, for the next engine."""
        if attempts:
            self._kept.keep(task_id, attempts)

    def task_ids(self) -> set[str]:
        """Return the ids of the unfinished tasks."""
        with self._lock:
            return set(self._tasks)
