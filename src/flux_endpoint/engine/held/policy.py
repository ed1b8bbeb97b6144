"""Which tasks share held allocations, and how many allocations are held. Pure.

A held allocation pays for short tasks of one shape that come one after the other. Whatever is
known to take long, or comes alone, or must not pass a waiting job, is a job of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flux_endpoint.engine.backend import Resources
from flux_endpoint.engine.demand import JobDemand
from flux_endpoint.engine.jobs.plan import RANKS_END, CommandPlan, JobPlan
from flux_endpoint.engine.local.pmi import MAX_RANKS

#: A task that follows another of its shape within so many seconds does not come alone.
RECENT = 1.0
#: Seconds for which an allocation is held without a task.
LINGER = 5.0
#: Seconds for which tasks wait until there is an allocation of their shape.
PATIENCE = 2.0
#: Seconds for which tasks do not wait again after there was none in time.
SCARCE = 10.0
#: Tasks that take longer than this (s) are jobs of their own.
LONG = 1.0
#: Seconds of work for each allocation of a shape.
_WORK = 1.0
#: Seconds after which an allocation is given back while others wait for resources.
QUANTUM = 5.0
#: The same if nobody waits: sites limit the time of jobs that have no limit of their own.
LIFETIME = 300.0
#: Urgency of the jobs that hold allocations.
URGENCY = 16
#: Weight of the latest duration in the average, and the most programs that are remembered.
_WEIGHT, _MAX_PROGRAMS = 0.3, 1000
#: Keys of a resource specification of which tasks are jobs of their own.
_SPECIAL = (
    "gpus_per_rank",
    "exclusive",
    "urgency",
    "constraints",
    "dependencies",
    "begin_time",
    "job_name",
    "shell_options",
    "attributes",
)


@dataclass(frozen=True)
class TaskShape:
    """The allocation of a task: ranks on one node.

    Attributes:
        ranks: number of ranks.
        cores: cores of each.
        queue: Flux queue.
        bank: bank that is charged.
    """

    ranks: int
    cores: int
    queue: str | None = None
    bank: str | None = None

    @property
    def all_cores(self) -> int:
        """Cores of the allocation."""
        return self.ranks * self.cores

    def capacity(self, resources: Resources) -> int:
        """Return how many allocations of this shape an instance has room for."""
        return resources.nodes * (resources.cores_per_node // self.all_cores)


def shape_of(
    plan: JobPlan, given: Mapping[str, Any] | None, resources: Resources
) -> TaskShape | None:
    """Return the shape of a task that may share an allocation; `None`: it is a job of its own.

    Args:
        plan: the task's plan.
        given: its resource specification as submitted.
        resources: the instance's.
    """
    if not isinstance(plan, CommandPlan) or any((given or {}).get(key) for key in _SPECIAL):
        return None
    request = plan.request
    wanted = request.resources
    if request.launch != "rank" or wanted.tasks_per_slot > 1:
        return None
    if not 2 <= wanted.num_ranks <= MAX_RANKS:  # a host connects no more
        return None
    if (wanted.walltime or 0.0) > LIFETIME:  # the limit of the host's job may be shorter
        return None
    if wanted.num_nodes not in (None, 1) or dict(request.shell_options) != RANKS_END:
        return None
    shape = TaskShape(wanted.num_ranks, wanted.cores_per_rank, wanted.queue, wanted.bank)
    return shape if shape.capacity(resources) else None


class Durations:
    """How long tasks take, by shape and program."""

    def __init__(self) -> None:
        self._average: OrderedDict[tuple[TaskShape, str], float] = OrderedDict()

    def add(self, shape: TaskShape, program: str, seconds: float) -> None:
        """Record that a task took `seconds`."""
        before = self._average.get((shape, program), seconds)
        self._set(shape, program, before + _WEIGHT * (seconds - before))

    def of(self, shape: TaskShape, program: str) -> float:
        """Return the average (s) of a program's tasks; 0 if none is known."""
        return self._average.get((shape, program), 0.0)

    def exceeds(self, shape: TaskShape, program: str, seconds: float) -> None:
        """Record that a task takes at least `seconds`, and goes on."""
        if self.of(shape, program) < seconds:
            self._set(shape, program, seconds)

    def _set(self, shape: TaskShape, program: str, seconds: float) -> None:
        self._average[shape, program] = seconds
        self._average.move_to_end((shape, program))
        if len(self._average) > _MAX_PROGRAMS:
            self._average.popitem(last=False)


@dataclass(frozen=True)
class Others:
    """Waits of jobs and functions outside of held allocations.

    Attributes:
        since: monotonic time since when some wait for resources; infinity: none.
        are_urgent: whether one of them comes before all of our tasks.
    """

    since: float = math.inf
    are_urgent: bool = False

    @classmethod
    def of(cls, demand: JobDemand, is_other: Callable[[str], bool], workers_since: float) -> Others:
        """Return who waits.

        Args:
            demand: all waiting jobs, except workers'.
            is_other: whether the job with a name counts.
            workers_since: monotonic time since when functions wait for workers' cores.
        """
        others = [each for each in demand.waiting if is_other(each.name)]
        since = min((each.since for each in others), default=math.inf)
        return cls(min(since, workers_since), any(each.urgency > URGENCY for each in others))

    @property
    def wait(self) -> bool:
        """Whether any wait."""
        return self.since < math.inf


def wanted_hosts(work: float, waiting: int, capacity: int) -> int:
    """Return how many allocations of a shape should serve the tasks that wait.

    Args:
        work: seconds that these will take in all, as far as is known.
        waiting: their number.
        capacity: the most that fit.
    """
    return min(capacity, waiting, max(1, math.ceil(work / _WORK)))
