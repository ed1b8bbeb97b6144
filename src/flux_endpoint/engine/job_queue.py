"""Which jobs wait for resources, and which resources the others have, updated by events."""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from flux_endpoint.engine.demand import Amount, Demand, JobDemand

#: The most waiting jobs that workers make room for at a time.
MOST_WAITING = 64


@dataclass
class _Job:
    demand: Demand
    #: Its position among the waiting jobs.
    place: tuple[int, int] | None = None
    held: Mapping[str, Amount] = field(default_factory=dict)
    #: Whether it has had its resources, or will not get any.
    settled: bool = False


class JobQueue:
    """Follows jobs by their events (RFC 21). Used by one thread.

    Args:
        complete: whether it gets all jobs of the instance except our workers'.
    """

    def __init__(self, *, complete: bool) -> None:
        self._complete = complete
        self._jobs: dict[int, _Job] = {}
        self._waiting: list[tuple[int, int]] = []  # sorted: negative priority, job id
        self._held: dict[str, Amount] = {}
        self._down: Mapping[str, Amount] = {}
        self._reported = JobDemand(complete=False)
        self._changed = complete

    def add(self, jobid: int, demand: Demand) -> None:
        """Follow a job; if it is followed already, its events may arrive once more."""
        self._jobs.setdefault(jobid, _Job(demand))

    def forget(self, jobid: int) -> None:
        """Stop following a job; an unknown job is ignored."""
        if jobid in self._jobs:
            self._settle(jobid)
            self._free(self._jobs.pop(jobid))

    def event(
        self, jobid: int, name: str, context: Mapping[str, Any], placement: Mapping[str, Amount]
    ) -> None:
        """Record an event of a job; an unknown job is ignored.

        Args:
            jobid: the job.
            name: the event's name.
            context: the event's context.
            placement: for an `alloc` event: the resources that the job got on each node.
        """
        job = self._jobs.get(jobid)
        if job is None:
            return
        match name:
            case "submit" | "urgency" if "urgency" in context:
                job.demand = replace(job.demand, urgency=int(context["urgency"]))
            case "priority" if not job.settled:
                self._prioritize(jobid, job, int(context.get("priority", 0)))
            case "alloc":
                self._settle(jobid)
                self._free(job)
                job.held = placement
                for node, amount in placement.items():
                    self._held[node] = self._held.get(node, Amount()) + amount
                self._changed = True
            case "exception" if context.get("severity") == 0:
                self._settle(jobid)
            case "free":
                self._free(job)
            case "clean":
                self.forget(jobid)

    def set_down(self, nodes: Mapping[str, Amount]) -> None:
        """Record the nodes that are down, drained or excluded, with all of their resources."""
        if nodes != self._down:
            self._down = nodes
            self._changed = True

    def news(self) -> JobDemand | None:
        """Return the waiting jobs and allocated resources, if they changed since the last call."""
        if not self._changed:
            return None
        self._changed = False
        demand = JobDemand(
            tuple(self._jobs[jobid].demand for _, jobid in islice(self._waiting, MOST_WAITING)),
            {**self._held, **self._down},
            self._complete,
            self._jobs[self._waiting[-1][1]].demand.urgency if self._waiting else 31,
        )
        if demand == self._reported:
            return None
        self._reported = demand
        return demand

    def _prioritize(self, jobid: int, job: _Job, priority: int) -> None:
        since = job.demand.since if job.place is not None else time.monotonic()
        self._leave(job)
        job.demand = replace(job.demand, since=since)
        if priority > 0:  # else the job is held
            job.place = (-priority, jobid)
            insort(self._waiting, job.place)
        self._changed = True

    def _settle(self, jobid: int) -> None:
        job = self._jobs[jobid]
        job.settled = True
        self._leave(job)

    def _leave(self, job: _Job) -> None:
        if job.place is not None:
            del self._waiting[bisect_left(self._waiting, job.place)]
            job.place = None
            self._changed = True

    def _free(self, job: _Job) -> None:
        for node, amount in job.held.items():
            left = self._held[node] - amount
            if left == Amount():
                del self._held[node]
            else:
                self._held[node] = left
        self._changed |= bool(job.held)
        job.held = {}
