"""Signals for running tasks, and the end of the workers that run them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial

from flux_endpoint.engine.workers.handle import WorkerHandle
from flux_endpoint.engine.workers.process_tree import kill_tree, signal_tree
from flux_endpoint.functions import command_of

#: Seconds between SIGTERM and SIGKILL for a cancelled task.
KILL_GRACE = 3.0


class WorkerTermination:
    """Signals and kills workers, each once its process id is known, some after a grace period."""

    def __init__(self) -> None:
        self._deadlines: list[tuple[float, WorkerHandle]] = []

    def signal(self, worker: WorkerHandle, signum: int, task_id: str) -> None:
        """Signal a running task: a command's processes; for a Python function the worker, too."""
        if task_id not in worker.tasks:
            return
        pid = worker.process.pid
        if pid is None:
            worker.process.once_forked(partial(self.signal, worker, signum, task_id))
            return
        _, buffer = worker.tasks.message(task_id)
        if command_of(buffer.decode()) is not None:
            signal_tree(pid, signum, itself=False)
        else:
            worker.signalled = signum
            signal_tree(pid, signum)

    def end(self, worker: WorkerHandle, task_id: str) -> None:
        """End the running task of `worker`, and the worker with it: SIGTERM, then SIGKILL."""
        worker.cancelled = task_id
        if worker.process.pid is None:
            worker.process.once_forked(partial(self.end, worker, task_id))
            return
        signal_tree(worker.process.pid, signal.SIGTERM)
        self.kill_later(worker)

    def kill(self, worker: WorkerHandle) -> None:
        """Kill a worker, and all processes below it."""
        process = worker.process
        if process.pid is None:
            process.once_forked(partial(self.kill, worker))
        elif not process.has_exited:
            kill_tree(process.pid)

    def kill_later(self, worker: WorkerHandle) -> None:
        """Kill a worker that has not exited `KILL_GRACE` seconds from now."""
        self._deadlines.append((time.monotonic() + KILL_GRACE, worker))

    def moments(self) -> Iterator[float]:
        """Yield the monotonic times at which a worker is to be killed."""
        yield from (moment for moment, _ in self._deadlines)

    def expire(self, now: float) -> None:
        """Kill the workers whose grace period has passed at the monotonic time `now`."""
        due = [worker for moment, worker in self._deadlines if moment <= now]
        self._deadlines = [entry for entry in self._deadlines if entry[0] > now]
        for worker in due:
            self.kill(worker)
