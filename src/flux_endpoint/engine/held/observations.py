"""Observations of tasks that may share allocations, and of others that wait for resources."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress

from flux_endpoint.engine.backend import JobFuture
from flux_endpoint.engine.demand import JobDemand
from flux_endpoint.engine.held.policy import Durations, Others, TaskShape
from flux_endpoint.protocol.job_events import EventRecord

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
        #: All who wait, except hosts.
        self.anybody = Others()
        #: Monotonic time of the latest task of each shape.
        self._latest: OrderedDict[TaskShape, float] = OrderedDict()
        #: Names of hosts in reports of waiting jobs, and of jobs for tasks of such shapes.
        self._hosts: set[str] = set()
        self._own: dict[str, TaskShape] = {}
        self._demand = JobDemand()
        self._workers_since = math.inf

    def came(self, shape: TaskShape) -> float:
        """Record that there is a task of a shape; return when the latest one before it was.

        These are monotonic times; infinitely early: there was none.
        """
        before = self._latest.pop(shape, -math.inf)
        self._latest[shape] = time.monotonic()
        if len(self._latest) > _MAX_SHAPES:
            self._latest.popitem(last=False)
        return before

    def follow(self, shape: TaskShape, program: str, task_id: str, future: JobFuture) -> None:
        """Learn from a task of such a shape that is a job of its own."""
        names, times = {task_id}, dict[str, float]()
        self._own[task_id] = shape

        def identified() -> None:
            with suppress(RuntimeError, CancelledError):  # it was never submitted
                names.add(str(future.jobid(timeout=0)))
            if task_id in self._own:
                self._own.update(dict.fromkeys(names, shape))

        def ended() -> None:
            for name in names:
                self._own.pop(name, None)
            self.came(shape)
            if len(times) == 2:
                self.durations.add(shape, program, times["finish"] - times["start"])

        def note(_: object, event: EventRecord) -> None:
            times[event.name] = event.timestamp

        future.add_jobid_callback(lambda _: self._post(identified))
        for name in ("start", "finish"):
            future.add_event_callback(name, note)
        future.add_done_callback(lambda _: self._post(ended))

    def others(self, shape: TaskShape) -> Others:
        """Return who waits, except hosts and tasks of `shape`."""

        def is_other(name: str) -> bool:
            return name not in self._hosts and self._own.get(name) != shape

        return Others.of(self._demand, is_other, self._workers_since)

    def add_host(self, name: str) -> None:
        """Record the name of a host's job."""
        self._hosts.add(name)
        self._look()

    def discard_host(self, name: str) -> None:
        """Forget a host's job, which has ended."""
        self._hosts.discard(name)

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
        self.anybody = Others.of(
            self._demand, lambda name: name not in self._hosts, self._workers_since
        )
