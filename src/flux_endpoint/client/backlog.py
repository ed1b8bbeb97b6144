"""The queue of tasks that were submitted but not yet sent, bounded in tasks and in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.needs import NO_NEEDS, Needs
from flux_endpoint.client.registry import FunctionRegistration

#: Limits of the backlog. At either of them, `submit` waits for the submitter.
MAX_TASKS = 100_000
MAX_BYTES = 512 * 2**20


class SubmissionRoute(NamedTuple):
    """The settings that all tasks of one request share. Dictionaries are JSON text or ""."""

    task_group_id: str
    endpoint_id: str
    resource_specification: str = ""
    user_endpoint_config: str = ""
    result_serializers: tuple[str, ...] = ()
    #: The job that the task follows; `None`: the task runs a function.
    attach_jobid: int | None = None
    run_options: str = ""


@dataclass(slots=True, eq=False)
class PendingTask:
    """A task that waits to be sent.

    Attributes:
        future: its future.
        route: the settings of its request.
        function: its function.
        payload: its packed arguments.
        needs: what it waits for.
        key: of its call, in the cache of results; empty: its result is not cached.
        size: characters that it keeps in memory; the code of a function counts only for the first
            of its tasks.
    """

    future: ComputeFuture
    route: SubmissionRoute
    function: FunctionRegistration
    payload: str
    needs: Needs = NO_NEEDS
    key: str = ""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.payload) + self.function.take_size()


class Accepted(NamedTuple):
    """A task that the service has accepted.

    Attributes:
        future: its future.
        task_id: its id.
        function_id: the function that it runs; `None` if it follows a job.
    """

    future: ComputeFuture
    task_id: str
    function_id: str | None = None

    def set_ids(self) -> None:
        """Set the future's ids; `task_id` last, so that a reader who sees it sees both."""
        self.future.function_id = self.function_id
        self.future.task_id = self.task_id


class SubmissionBacklog:
    """Any thread fills it; the submitter's thread empties it. No call does I/O.

    Args:
        max_tasks: the most tasks.
        max_bytes: the most characters of all tasks together.
    """

    def __init__(self, max_tasks: int = MAX_TASKS, max_bytes: int = MAX_BYTES) -> None:
        self._max_tasks = max_tasks
        self._max_bytes = max_bytes
        self._tasks: OrderedDict[ComputeFuture, PendingTask] = OrderedDict()
        self._bytes = 0
        self._closed = False
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._emptied = threading.Condition(lock)

    def put(self, task: PendingTask, *, may_wait: bool = True) -> bool:
        """Append `task`, waiting while the backlog is full; return `False` if it is closed.

        Args:
            task: the task.
            may_wait: `False`: exceed the bounds instead of waiting. The client's own threads need
                it: they would wait for themselves.
        """
        with self._filled:
            if may_wait and self._is_full():
                self._emptied.wait_for(lambda: self._closed or not self._is_full())
            if self._closed:
                return False
            self._tasks[task.future] = task
            self._bytes += task.size
            if len(self._tasks) == 1:
                self._filled.notify()
            return True

    def __len__(self) -> int:
        return len(self._tasks)

    def take(self, max_tasks: int, max_bytes: int) -> list[PendingTask]:
        """Wait until there are tasks, then remove and return the oldest ones.

        Args:
            max_tasks: the most tasks to return.
            max_bytes: the most characters of them all; a larger task is returned alone.

        Returns:
            The tasks; none if the backlog is closed and empty.
        """
        with self._filled:
            self._filled.wait_for(lambda: self._tasks or self._closed)
            batch: list[PendingTask] = []
            size = 0
            while self._tasks and len(batch) < max_tasks:
                task = next(iter(self._tasks.values()))
                size += task.size
                if batch and size > max_bytes:
                    break
                batch.append(task)
                self._remove(task.future)
            self._emptied.notify_all()
            return batch

    def discard(self, future: ComputeFuture) -> None:
        """Remove the task of `future`, if it is still here, and free its space."""
        with self._filled:
            if future in self._tasks:
                self._remove(future)
                self._emptied.notify_all()

    def _remove(self, future: ComputeFuture) -> None:
        self._bytes -= self._tasks.pop(future).size

    def close(self) -> None:
        """Accept no more tasks; the present ones stay."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()
            self._emptied.notify_all()

    def clear(self) -> list[PendingTask]:
        """Remove and return all tasks."""
        with self._filled:
            tasks = list(self._tasks.values())
            self._tasks.clear()
            self._bytes = 0
            self._emptied.notify_all()
            return tasks

    def _is_full(self) -> bool:
        return len(self._tasks) >= self._max_tasks or self._bytes >= self._max_bytes
