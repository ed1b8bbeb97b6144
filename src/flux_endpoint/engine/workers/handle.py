"""A manager's view of one worker: its process, its connection, and the tasks that it was sent."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from flux_endpoint.engine.workers.frames import Claims, FrameSocket, Task
from flux_endpoint.engine.workers.output_reader import WorkerOutput


class WorkerProcess:
    """A worker's process, which the template forks in a moment."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.has_exited = False
        self._waiting: list[Callable[[], None]] = []

    def once_forked(self, action: Callable[[], None]) -> None:
        """Call a function once the process id is known."""
        self._waiting.append(action)

    def forked(self, pid: int) -> None:
        """Record the process id, and do what waited for it."""
        self.pid = pid
        for action in self._waiting:
            action()
        self._waiting.clear()


class WorkerChannel:
    """The manager's end of a worker's connection.

    Args:
        frames: the connection.
    """

    def __init__(self, frames: FrameSocket) -> None:
        self._frames = frames
        self._poller: zmq.Poller | None = None
        #: The events for which the connection is polled.
        self._polled_for = zmq.POLLIN
        #: Whether nothing more is read.
        self.eof = False

    def fileno(self) -> int:
        """Return the descriptor that is polled."""
        return self._frames.fileno()

    def open(self, poller: zmq.Poller) -> None:
        """Have `poller` report that there is something to read."""
        self._poller = poller
        poller.register(self, self._polled_for)

    def put(self, task: Task) -> None:
        """Queue a task for the next `flush`."""
        self._frames.put(*task)

    def flush(self) -> None:
        """Write as much queued data as possible, and the rest when the worker has read some."""
        self._frames.flush()
        flags = zmq.POLLIN | (zmq.POLLOUT if self._frames.wants_write else 0)
        if flags != self._polled_for and self._poller is not None and not self.eof:
            self._polled_for = flags
            self._poller.modify(self, flags)

    def receive(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield the frames that have arrived; see `FrameSocket.receive`."""
        yield from self._frames.receive()

    def stop_reading(self) -> None:
        """Read nothing more."""
        if not self.eof and self._poller is not None:
            self._poller.unregister(self)
        self.eof = True

    def close(self) -> None:
        """Close the connection."""
        self._frames.close()


class SentTasks:
    """The tasks that a worker was sent and that have not ended, in order; the first is running.

    Args:
        claims: how many of them may still start; shared with the worker.
    """

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._ids: deque[str] = deque()
        #: Their messages, in case the worker is lost.
        self._messages: dict[str, Task] = {}
        self.since = 0.0  # monotonic time at which the first of them started
        #: The same; `since` is later if tasks were taken back meanwhile.
        self._started = 0.0
        self.began = 0.0  # the same in seconds since the epoch
        #: Whether the first task was reported to the pool as running.
        self.is_reported = False
        #: Number of tasks that were taken back and that the worker has not skipped yet.
        self.skipping = 0
        #: The latest task that has ended.
        self.ended = ""
        #: Whether there were more claims than tasks.
        self.has_miscounted = False

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._messages

    def is_first(self, task_id: str) -> bool:
        """Return whether a task is the running one."""
        return bool(self._ids) and self._ids[0] == task_id

    @property
    def limit(self) -> float:
        """Seconds that the running task may run; infinity: as long as it does."""
        if not self._ids:
            return math.inf
        return float(self._messages[self._ids[0]][0].get("limit", math.inf))

    @property
    def overdue_at(self) -> float:
        """Monotonic time at which the running task has run for too long."""
        return self._started + self.limit

    def message(self, task_id: str) -> Task:
        """Return the message with which a task was sent."""
        return self._messages[task_id]

    def first_starts(self, now: float) -> None:
        """Record that the first task, if any, has started at the monotonic time `now`."""
        self.since, self.began = now, time.time()
        self._started = now
        self.is_reported = False

    def add(self, task: Task) -> None:
        """Append a task; it may not start before `allow`."""
        task_id = str(task[0]["id"])
        self._ids.append(task_id)
        self._messages[task_id] = task
        if self.ended == task_id:  # it is run again
            self.ended = ""

    def allow(self, count: int) -> None:
        """Let the worker start `count` more tasks."""
        self.has_miscounted |= not self._claims.add(count)

    def revoke(self) -> int:
        """Revoke the claims of tasks that have not begun; return how many these are.

        If a task has raised the counter: all but the first, which may be that task.
        """
        there = len(self._ids)
        left = self._claims.take_all(there + 1)
        self.has_miscounted |= left > there
        return max(0, there - 1) if self.has_miscounted else left

    def remove(self, task_id: str) -> Task:
        """Remove a task, and return its message."""
        self._ids.remove(task_id)
        return self._messages.pop(task_id)

    def remove_last(self) -> Task:
        """Remove the last task, and return its message."""
        return self._messages.pop(self._ids.pop())

    def take_back(self) -> Task:
        """Remove the last task, which the worker will skip, and return its message."""
        self.skipping += 1
        return self.remove_last()

    def close(self) -> None:
        """Close the counter of claims."""
        self._claims.close()


class WorkerHandle:
    """A worker, and the tasks that it was sent.

    Args:
        channel: its connection.
        claims: the counter that it shares with the manager.
        output: the pipes that it prints to.
        place: its place among the node's workers; the replacement of a lost worker gets the same
            gpus.
    """

    def __init__(
        self, channel: WorkerChannel, claims: Claims, output: WorkerOutput, place: int
    ) -> None:
        self.channel = channel
        self.output = output
        self.place = place
        self.process = WorkerProcess()
        self.tasks = SentTasks(claims)
        self.process.once_forked(lambda: self.tasks.first_starts(time.monotonic()))
        #: Number of tasks that have ended here.
        self.served = 0
        #: The task whose cancellation ends the worker.
        self.cancelled: str | None = None
        #: The signal that was sent to its running task on request.
        self.signalled: int | None = None
        #: Whether it starts no more tasks, since a task has damaged its process.
        self.leaves = False
        #: Whether it was ended because its connection had invalid data.
        self.is_distrusted = False

    @property
    def takes_tasks(self) -> bool:
        """Whether it may get more tasks."""
        ends = self.channel.eof or self.leaves or self.cancelled is not None
        return not ends and not self.tasks.skipping

    @property
    def overdue_at(self) -> float:
        """Monotonic time at which its running task is to be ended; infinity: never."""
        is_running = self.process.pid is not None and self.cancelled is None
        return self.tasks.overdue_at if is_running else math.inf

    @property
    def is_unresponsive(self) -> bool:
        """Whether it should be reading its connection: it is idle, and tasks were taken back."""
        idle = self.tasks.skipping and not self.tasks
        return bool(self.process.pid and idle and not self.channel.eof)
