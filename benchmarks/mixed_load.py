"""A load of functions, MPI jobs and gpu jobs over time, and the shortest possible time for it."""

from __future__ import annotations

import argparse
import random
import uuid
from dataclasses import dataclass, field

#: Names of the kinds of tasks.
KINDS = {"function": "functions", "mpi": "MPI jobs", "gpu": "gpu jobs"}


@dataclass
class Task:
    """A task and its observed times, in seconds since the first submission."""

    kind: str
    release: float
    seconds: float
    nodes: int = 1
    ranks: int = 1
    task_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    #: When each of its cores began and ended its work.
    work: list[tuple[float, float]] = field(default_factory=list)
    #: When Flux allocated its cores and freed them, if it was a job.
    allocated: float | None = None
    freed: float | None = None

    @property
    def core_seconds(self) -> float:
        return self.seconds * self.ranks


def make_load(options: argparse.Namespace) -> list[Task]:
    """Return the tasks in the order of their submission; the same seed gives the same tasks."""
    chance = random.Random(options.seed)
    drawn = [
        *(("function", chance.uniform(0.5, 3.0)) for _ in range(options.functions)),
        *(("mpi", chance.uniform(3.0, 8.0)) for _ in range(options.jobs)),
        *(("gpu", chance.uniform(2.0, 5.0)) for _ in range(options.gpu_jobs)),
    ]
    tasks = []
    for number, (kind, seconds) in enumerate(drawn):
        nodes = 1 + number % options.nodes if kind == "mpi" else 1
        ranks = nodes * options.cores if kind == "mpi" else 1
        tasks.append(Task(kind, 0.0, seconds * options.scale, nodes, ranks))
    # Submit them evenly, in less time than their work takes, so that some always wait.
    span = 0.8 * sum(task.core_seconds for task in tasks) / (options.nodes * options.cores)
    for kind in KINDS:
        own = [task for task in tasks if task.kind == kind]
        for number, task in enumerate(own):
            task.release = span * (number / len(own))
    return sorted(tasks, key=lambda task: task.release)


def shortest(tasks: list[Task], cores: int) -> float:
    """Return a lower bound of the time (s) that any schedule needs, even with full knowledge.

    Each task needs its own duration after its submission. And after the submission of any task, all
    cores together must do at least the work of this task and of all later tasks.

    Args:
        tasks: the tasks.
        cores: number of all cores.
    """
    bound = max(task.release + task.seconds for task in tasks)
    left = 0.0
    for task in sorted(tasks, key=lambda task: -task.release):
        left += task.core_seconds
        bound = max(bound, task.release + left / cores)
    return bound
