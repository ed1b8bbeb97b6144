"""Tasks with `retries`: which attempt of each runs, when the next one is due, when it is over.

An attempt is a task of its own for the engine, which never sees an id twice: the first has the
task's id, the n-th `TASK.n`. So a late or repeated end of an earlier attempt is recognized.

A task *runs* while the engine has its attempt, and *waits* between two attempts. It ends with the
result of its last attempt, or by a kill while it waits. A kill of a running attempt makes it the
last one, whatever its result is.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from flux_endpoint.endpoint.attempt_ends import (
    AttemptEnd,
    cancelled_result,
    final_result,
    read_end,
)
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.protocol.run_options import RunOptions

#: Share of a pause that is left to chance: tasks that failed together should not start together.
JITTER = 0.25


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts at an unfinished task, as the journal has them.

    Attributes:
        task_id: the task.
        options: its options.
        failures: why each attempt so far has failed.
        due: time of the next attempt (seconds since the epoch); `None`: the last one runs.
        is_last: whether the running attempt was ended on request.
    """

    task_id: str
    options: RunOptions
    failures: tuple[str, ...] = ()
    due: float | None = None
    is_last: bool = False

    @property
    def engine_id(self) -> str:
        """The id by which the engine knows the present attempt, or the next one."""
        number = len(self.failures) + 1
        return self.task_id if number == 1 else f"{self.task_id}.{number}"


def task_of(engine_id: str) -> str:
    """Return the id of the task that an attempt belongs to."""
    return engine_id.partition(".")[0]


def attempt_of(engine_id: str) -> int:
    """Return the number of an attempt; the first is 1."""
    number = engine_id.partition(".")[2]
    return int(number) if number else 1


def by_task(attempts: Mapping[str, float]) -> dict[str, float]:
    """Return the values of attempts by the ids of their tasks."""
    return {task_of(engine_id): value for engine_id, value in attempts.items()}


class Retries:
    """The tasks that may have several attempts. Used by the agent's thread only."""

    def __init__(self) -> None:
        self._attempts: dict[str, Attempts] = {}
        #: Monotonic time, task and number of failures of each pause; some are over.
        self._pauses: list[tuple[float, str, int]] = []

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._attempts

    @property
    def due(self) -> float:
        """Monotonic time of the next attempt; infinity: none waits."""
        while self._pauses and not self._is_waiting(*self._pauses[0][1:]):
            heapq.heappop(self._pauses)
        return self._pauses[0][0] if self._pauses else math.inf

    def accepted(self, task: EngineTask) -> None:
        """Take a new task, if it may have several attempts."""
        if task.options is not None and task.options.retries:
            self._attempts[task.task_id] = Attempts(task.task_id, task.options)

    def recovered(self, attempts: Iterable[Attempts]) -> None:
        """Take the unfinished tasks of an earlier agent."""
        now, wall = time.monotonic(), time.time()
        for each in attempts:
            if not each.options.retries:
                continue
            self._attempts[each.task_id] = each
            if each.due is not None:
                # The clock may have been set meanwhile.
                left = min(max(0.0, each.due - wall), each.options.pause(len(each.failures)))
                self._wait(each, now + left)

    def to_run(self, task: EngineTask) -> EngineTask | None:
        """Return a recovered task as the engine is to have it; `None`: it waits."""
        known = self._attempts.get(task.task_id)
        if known is None:
            return task
        return None if known.due is not None else replace(task, task_id=known.engine_id)

    def engine_id(self, task_id: str) -> str | None:
        """Return the id by which the engine has a task now; `None`: it waits."""
        known = self._attempts.get(task_id)
        if known is None:
            return task_id
        return None if known.due is not None else known.engine_id

    def ended(self, result: EngineResult) -> Attempts | EngineResult | None:
        """Take the end of an attempt at a known task.

        Returns:
            What the journal must have if there is another attempt; else the result of the task;
            `None`: the attempt had ended before.
        """
        known = self._attempts[task_of(result.task_id)]
        if known.due is not None or result.task_id != known.engine_id:
            return None
        end = read_end(result.body)
        if not known.is_last and end.leads_to_another(known.options, len(known.failures)):
            return self._failed(known, end)
        del self._attempts[known.task_id]
        return final_result(known.task_id, result.body, known.failures)

    def _failed(self, known: Attempts, end: AttemptEnd) -> Attempts:
        failures = (*known.failures, end.reason)
        pause = known.options.pause(len(failures))
        pause *= random.uniform(1 - JITTER, 1)  # noqa: S311 - not a secret
        waiting = replace(known, failures=failures, due=time.time() + pause)
        self._attempts[known.task_id] = waiting
        self._wait(waiting, time.monotonic() + pause)
        return waiting

    def killed(self, task_id: str) -> Attempts | EngineResult:
        """End a known task on request.

        Returns:
            Its result, if it waits; else what the journal must have: the running attempt is the
            last one.
        """
        known = self._attempts[task_id]
        if known.due is not None:
            del self._attempts[task_id]
            return cancelled_result(task_id, known.failures)
        self._attempts[task_id] = replace(known, is_last=True)
        return self._attempts[task_id]

    def take_due(self, now: float) -> list[Attempts]:
        """Return the attempts that are to begin now; the journal must have them.

        Args:
            now: the monotonic time.
        """
        begun = []
        while self.due <= now:
            _, task_id, _ = heapq.heappop(self._pauses)
            self._attempts[task_id] = replace(self._attempts[task_id], due=None)
            begun.append(self._attempts[task_id])
        return begun

    def _wait(self, attempts: Attempts, until: float) -> None:
        heapq.heappush(self._pauses, (until, attempts.task_id, len(attempts.failures)))

    def _is_waiting(self, task_id: str, failures: int) -> bool:
        known = self._attempts.get(task_id)
        return known is not None and known.due is not None and len(known.failures) == failures
