"""Functions, MPI jobs and gpu jobs that come over time, and how soon they could be done."""

from __future__ import annotations

import argparse
import random
import uuid
from dataclasses import dataclass, field

#: Kinds of tasks, and what they are called.
KINDS = {"function": "functions", "mpi": "MPI jobs", "gpu": "gpu jobs"}


@dataclass
class Task:
    """A task, and what became of it; times are seconds since the first submission."""

    kind: str
    release: float
    seconds: float
    nodes: int = 1
    ranks: int = 1
    task_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    #: When each of its cores began and ended its work.
    work: list[tuple[float, float]] = field(default_factory=list)
    #: When Flux gave it cores and took them back, if it was a job.
    allocated: float | None = None
    freed: float | None = None

    @property
    def core_seconds(self) -> float:
        return self.seconds * self.ranks


def make_load(options: argparse.Namespace) -> list[Task]:
    """Return the tasks in the order in which they come, the same for the same seed."""
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
    # They come evenly, in less time than their work takes: there is always some that waits.
    span = 0.8 * sum(task.core_seconds for task in tasks) / (options.nodes * options.cores)
    for kind in KINDS:
        own = [task for task in tasks if task.kind == kind]
        for number, task in enumerate(own):
            task.release = span * (number / len(own))
    return sorted(tasks, key=lambda task: task.release)


def shortest(tasks: list[Task], cores: int) -> float:
    """Return a time (seconds) that no schedule can beat, whatever it knows beforehand.

    From the moment on at which a task comes there is at least the work of all that come then or
    later, and no task is shorter than itself.
    """
    bound = max(task.release + task.seconds for task in tasks)
    left = 0.0
    for task in sorted(tasks, key=lambda task: -task.release):
        left += task.core_seconds
        bound = max(bound, task.release + left / cores)
    return bound
