"""What is known of tasks that may share allocations, and of others who wait for resources."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress

from flux_endpoint.engine.backend import EventRecord, JobFuture
from flux_endpoint.engine.demand import JobDemand
from flux_endpoint.engine.held.policy import Durations, Others, Shape

#: The most shapes that are remembered.
_MAX_SHAPES = 1000


class Observations:
    """Observes jobs, held or not. Used by the runner's thread only.

    Args:
        post: has an action run on the runner's thread.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        self.durations = Durations()
        self.others = Others()
        #: Monotonic time of the latest task of each shape.
        self._latest: OrderedDict[Shape, float] = OrderedDict()
        #: Names, in reports of waiting jobs, of hosts and of tasks of such shapes.
        self._kin: set[str] = set()
        self._demand = JobDemand()
        self._workers_since = math.inf

    def came(self, shape: Shape) -> float:
        """Record that there is a task of a shape; return when the latest one before it was.

        These are monotonic times; infinitely early: there was none.
        """
        before = self._latest.pop(shape, -math.inf)
        self._latest[shape] = time.monotonic()
        if len(self._latest) > _MAX_SHAPES:
            self._latest.popitem(last=False)
        return before

    def follow(self, shape: Shape, program: str, task_id: str, future: JobFuture) -> None:
        """Learn from a task of such a shape that is a job of its own."""
        names, times = {task_id}, dict[str, float]()
        self._kin.add(task_id)

        def identified() -> None:
            with suppress(RuntimeError, CancelledError):  # it was never submitted
                names.add(str(future.jobid(timeout=0)))
            if task_id in self._kin:
                self.add_kin(*names)

        def ended() -> None:
            self._kin -= names
            self.came(shape)
            if len(times) == 2:
                self.durations.add(shape, program, times["finish"] - times["start"])

        def note(_: object, event: EventRecord) -> None:
            times[event.name] = event.timestamp

        future.add_jobid_callback(lambda _: self._post(identified))
        for name in ("start", "finish"):
            future.add_event_callback(name, note)
        future.add_done_callback(lambda _: self._post(ended))

    def add_kin(self, *names: str) -> None:
        """Record the names of jobs that are no others."""
        self._kin.update(names)
        self._look()

    def discard_kin(self, name: str) -> None:
        """Forget the name of a job that has ended."""
        self._kin.discard(name)

    def demand(self, demand: JobDemand) -> None:
        """Set the requests of waiting jobs: of the whole instance, or the endpoint's only."""
        if demand.complete or not self._demand.complete:
            self._demand = demand
            self._look()

    def workers_wait(self, since: float) -> None:
        """Set since when functions wait for workers' cores (monotonic time; infinity: none do)."""
        self._workers_since = since
        self._look()

    def _look(self) -> None:
        self.others = Others.of(self._demand, self._kin, self._workers_since)
