"""Where each task is that an engine has, and what was tried for it before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from flux_endpoint.engine.attempts import KeptAttempts


class Place(Enum):
    """Which part of an engine has a task."""

    WORKERS = "workers"
    #: A worker puts its arguments into its command; it becomes a job then.
    FORMATTING = "formatting"
    JOBS = "jobs"


@dataclass
class _Known:
    place: Place
    #: Why each attempt at it before it came here has failed.
    attempts: list[str] = field(default_factory=list)
    #: Whether it was cancelled while it was formatted.
    cancelled: bool = False


class TaskIndex:
    """The tasks of one engine that have not ended. For any thread.

    Args:
        kept: attempts by earlier engines.
    """

    def __init__(self, kept: KeptAttempts) -> None:
        self._kept = kept
        self._earlier: dict[str, list[str]] = {}
        self._tasks: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def load(self) -> None:
        """Read what earlier engines have tried."""
        self._earlier = self._kept.load()

    def add(self, task_id: str, place: Place, attempts: Sequence[str]) -> list[str]:
        """Take a task that is about to be given to `place`.

        Args:
            task_id: the task.
            place: who gets it.
            attempts: why attempts elsewhere have failed; default: as earlier engines have noted.

        Returns:
            The attempts.
        """
        with self._lock:
            earlier = self._earlier.pop(task_id, [])
            self._tasks[task_id] = _Known(place, list(attempts) or earlier)
            return list(self._tasks[task_id].attempts)

    def cancel(self, task_id: str) -> Place | None:
        """Take note of a wish to end a task; return who has it, and is to be told."""
        with self._lock:
            known = self._tasks.get(task_id)
            if known is None:
                return None
            known.cancelled = known.place is Place.FORMATTING
            return known.place

    def place(self, task_id: str) -> Place | None:
        """Return who has a task."""
        known = self._tasks.get(task_id)
        return None if known is None else known.place

    def begin_job(self, task_id: str, submit: Callable[[list[str]], None]) -> bool:
        """Have a formatted task become a job, unless it was cancelled meanwhile.

        Args:
            task_id: the task.
            submit: hands it over, given the attempts. Who cancels it waits that long: so the wish
                comes after it.

        Returns:
            Whether it was handed over.
        """
        with self._lock:
            known = self._tasks.get(task_id)
            if known is None or known.cancelled:
                return False
            known.place = Place.JOBS
            submit(list(known.attempts))
            return True

    def was_cancelled(self, task_id: str) -> bool:
        """Return whether a task was cancelled while it was formatted."""
        known = self._tasks.get(task_id)
        return known is not None and known.cancelled

    def end(self, task_id: str) -> None:
        """Forget a task that has ended, and the attempts at it."""
        with self._lock:
            known = self._tasks.pop(task_id, None)
        if known is not None and known.attempts:
            self._kept.forget(task_id)

    def leave(self, task_id: str) -> list[str]:
        """Forget a task that is left without an end; return the attempts before it came here."""
        with self._lock:
            known = self._tasks.pop(task_id, None)
        return [] if known is None else known.attempts

    def task_ids(self) -> set[str]:
        """Return the tasks that have not ended."""
        with self._lock:
            return set(self._tasks)
