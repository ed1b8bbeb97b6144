"""What an earlier pool's managers hold: tasks that must not be run again.

After a restart, nobody but the managers knows which tasks they run or have finished. So no task is
given to a worker before each manager of before has said that, or is known to be gone. What they
hold is then given to the tasks as these are submitted; what nobody has submitted when all of before
has been is not wanted any more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from flux_endpoint import logs
from flux_endpoint.engine.workers.spool import SpooledEnd

log = logging.getLogger(__name__)

#: Seconds that a manager of before has to greet us; then its job is cancelled.
PATIENCE = 30.0


@dataclass(frozen=True)
class Holding:
    """Where a task of before is: with a manager that runs it, or has its end."""

    manager_id: str
    #: When it began, if it runs, in seconds since the epoch.
    began: float | None


class Recovery:
    """Used by the pool's thread only.

    Args:
        awaited: managers that may hold tasks.
        ends: what managers that are gone have left on disk.
        now: monotonic time.
    """

    def __init__(self, awaited: Iterable[str], ends: Iterable[SpooledEnd], now: float) -> None:
        self._awaited = set(awaited)
        self._held: dict[str, Holding] = {}
        self._ends: dict[str, SpooledEnd] = {}
        #: How many ends each file is needed for.
        self._needed: dict[Path, int] = {}
        self._add(ends)
        self._given: dict[str, Path] = {}
        #: Whether all tasks of before have been submitted.
        self.is_complete = False
        self.due = now + PATIENCE if self._awaited else math.inf

    @property
    def is_pending(self) -> bool:
        """Whether it isn't known yet which tasks managers hold."""
        return bool(self._awaited)

    @property
    def awaited(self) -> frozenset[str]:
        """The managers that have not said what they hold."""
        return frozenset(self._awaited)

    @property
    def held(self) -> set[str]:
        """The tasks that have been found, and not been submitted."""
        return {*self._held, *self._ends}

    def heard(self, manager_id: str, held: dict[str, float | None]) -> None:
        """A manager has said what it holds: running tasks, with their start, and others' ends."""
        self._resolve(manager_id)
        for task_id, began in held.items():
            self._held[task_id] = Holding(manager_id, began)

    def gone(self, manager_id: str, ends: Iterable[SpooledEnd]) -> None:
        """A manager's job has ended; this is what it has left on disk."""
        self._resolve(manager_id)
        self._held = {
            task_id: holding
            for task_id, holding in self._held.items()
            if holding.manager_id != manager_id
        }
        self._add(ends)

    def _add(self, ends: Iterable[SpooledEnd]) -> None:
        for end in ends:
            self._needed.setdefault(end.path, 0)
            if end.header["id"] not in self._ends:
                self._ends[end.header["id"]] = end
                self._needed[end.path] += 1

    def _resolve(self, manager_id: str) -> None:
        self._awaited.discard(manager_id)
        if not self._awaited:
            self.due = math.inf

    def holding(self, task_id: str) -> Holding | None:
        """Return who has a task that is submitted now; it is that manager's from now on."""
        return self._held.pop(task_id, None)

    def end(self, task_id: str) -> SpooledEnd | None:
        """Return the end of a task that is submitted now, if it waits on disk."""
        end = self._ends.pop(task_id, None)
        if end is not None:
            self._given[task_id] = end.path
        return end

    def settle(self, task_ids: Collection[str]) -> None:
        """Forget ends that the agent has on disk."""
        if not self._given:
            return
        for task_id in task_ids:
            path = self._given.pop(task_id, None)
            if path is not None:
                self._needed[path] -= 1
                if self.is_complete and self._needed[path] == 0:
                    self._remove(path)

    def complete(self) -> dict[str, list[str]]:
        """All tasks of before were submitted; return what else there is, for each manager."""
        self.is_complete = True
        for end in self._ends.values():
            self._needed[end.path] -= 1
        self._ends.clear()
        for path in [path for path, count in self._needed.items() if count == 0]:
            self._remove(path)
        unwanted: dict[str, list[str]] = {}
        for task_id, holding in self._held.items():
            unwanted.setdefault(holding.manager_id, []).append(task_id)
        self._held.clear()
        return unwanted

    def _remove(self, path: Path) -> None:
        del self._needed[path]
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logs.event(log, logging.WARNING, "results that were taken stay on disk", reason=error)
