"""The tasks that an earlier pool's managers hold and that must not run again.

After a restart only the managers know which tasks they run or have finished. So no task goes to a
worker before each recovered manager has reported its tasks, or is known to be gone. The reported
tasks are matched with the submitted ones; what is left when all earlier tasks have been submitted
is discarded.
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

#: Seconds that a recovered manager has to connect; then its job is cancelled.
CONNECT_TIMEOUT = 30.0


@dataclass(frozen=True)
class Holding:
    """Where an earlier task is: with a manager that runs it or has its end."""

    manager_id: str
    #: Its start if it is running, in seconds since the epoch.
    began: float | None


class Recovery:
    """Used by the pool's thread only.

    Args:
        awaited: managers that may hold tasks.
        ends: ends that lost managers have left on disk.
        now: monotonic time.
    """

    def __init__(self, awaited: Iterable[str], ends: Iterable[SpooledEnd], now: float) -> None:
        self._awaited = set(awaited)
        self._held: dict[str, Holding] = {}
        self._ends: dict[str, SpooledEnd] = {}
        #: For each file, the number of ends in it that are still needed.
        self._needed: dict[Path, int] = {}
        self._add(ends)
        self._given: dict[str, Path] = {}
        #: Whether all earlier tasks have been submitted.
        self.is_complete = False
        self.due = now + CONNECT_TIMEOUT if self._awaited else math.inf

    @property
    def is_pending(self) -> bool:
        """Whether reports of managers are missing."""
        return bool(self._awaited)

    @property
    def awaited(self) -> frozenset[str]:
        """The managers that have not reported yet."""
        return frozenset(self._awaited)

    @property
    def held(self) -> set[str]:
        """The tasks that were found and not submitted yet."""
        return {*self._held, *self._ends}

    def reported(self, manager_id: str, held: dict[str, float | None]) -> None:
        """Process a manager's report: running tasks with their starts, and ended tasks."""
        self._resolve(manager_id)
        for task_id, began in held.items():
            self._held[task_id] = Holding(manager_id, began)

    def gone(self, manager_id: str, ends: Iterable[SpooledEnd]) -> None:
        """Take the ends that a manager has left on disk, since its job has ended."""
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
        """Return who has a task that is being submitted; from now on that manager owns it."""
        return self._held.pop(task_id, None)

    def end(self, task_id: str) -> SpooledEnd | None:
        """Return the end of a task that is being submitted, if it is on disk."""
        end = self._ends.pop(task_id, None)
        if end is not None:
            self._given[task_id] = end.path
        return end

    def settle(self, task_ids: Collection[str]) -> None:
        """Discard ends that the agent has on disk."""
        if not self._given:
            return
        for task_id in task_ids:
            path = self._given.pop(task_id, None)
            if path is not None:
                self._needed[path] -= 1
                if self.is_complete and self._needed[path] == 0:
                    self._remove(path)

    def complete(self) -> dict[str, list[str]]:
        """Record that all earlier tasks were submitted; return the rest, by manager."""
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
            logs.event(log, logging.WARNING, "can't remove results from disk", reason=error)
