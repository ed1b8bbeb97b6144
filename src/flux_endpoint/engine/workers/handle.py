"""A manager's state of one worker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from flux_endpoint.engine.workers.frames import FrameSocket
from flux_endpoint.engine.workers.waiting import Claims, Task


@dataclass(eq=False)
class WorkerHandle:
    """A worker, and the tasks that it was sent."""

    channel: FrameSocket
    claims: Claims
    #: Its place among the node's workers; the replacement of a lost worker gets the same gpus.
    place: int
    pid: int | None = None
    #: Called once the process id is known.
    once_forked: list[Callable[[], None]] = field(default_factory=list)
    #: Ids of the sent tasks, in order; the first is running.
    tasks: deque[str] = field(default_factory=deque)
    #: These tasks' messages, in case the worker is lost.
    sent: dict[str, Task] = field(default_factory=dict)
    since: float = 0.0  # monotonic time at which the first of them started
    began: float = 0.0  # the same in seconds since the epoch
    #: Whether the first task was reported to the pool as running.
    is_reported: bool = False
    #: Number of tasks that were taken back and that the worker has not skipped yet.
    skipping: int = 0
    served: int = 0
    #: The latest task that has ended.
    ended: str = ""
    cancelled: str | None = None
    #: The signal that was sent to its running task on request.
    signalled: int | None = None
    #: Whether it starts no more tasks, since a task has damaged its process.
    leaves: bool = False
    #: The events for which the manager polls its connection.
    watched_for: int = zmq.POLLIN
    eof: bool = False
    has_exited: bool = False
    #: Whether it was ended because its connection had invalid data.
    is_distrusted: bool = False
    #: Whether there were more claims than tasks.
    has_miscounted: bool = False

    @property
    def takes_tasks(self) -> bool:
        """Whether it may get more tasks."""
        ends = self.eof or self.leaves or self.cancelled is not None
        return not ends and not self.skipping

    @property
    def is_unresponsive(self) -> bool:
        """Whether it should be reading its connection: it is idle, and tasks were taken back."""
        return bool(self.pid and self.skipping and not self.tasks and not self.eof)

    def forked(self, pid: int) -> None:
        """Record the process id, and do what waited for it."""
        self.pid = pid
        for action in self.once_forked:
            action()
        self.once_forked.clear()

    def starts(self, now: float) -> None:
        """Record that the first of its tasks, if any, has started."""
        self.since, self.began = now, time.time()
        self.is_reported = False

    def revoke_claims(self) -> int:
        """Revoke the claims of tasks that have not begun; return how many these are.

        If a task has raised the counter: all but the first, which may be that task.
        """
        there = len(self.tasks)
        left = self.claims.take_all(there + 1)
        self.has_miscounted |= left > there
        return max(0, there - 1) if self.has_miscounted else left
