"""What a manager knows of one of its workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from flux_endpoint.engine.workers.claims import Claims
from flux_endpoint.engine.workers.frames import FrameSocket
from flux_endpoint.engine.workers.node_queue import Task


@dataclass(eq=False)
class WorkerHandle:
    """A worker, and what it was sent."""

    channel: FrameSocket
    claims: Claims
    #: Which of the node's workers it is: one that takes a lost one's place gets the same gpus.
    place: int
    pid: int | None = None
    #: What is to be done as soon as that is known.
    once_born: list[Callable[[], None]] = field(default_factory=list)
    #: Ids of the tasks that were sent, in order; the first is running.
    tasks: deque[str] = field(default_factory=deque)
    #: Those tasks, for the case that the worker is lost.
    sent: dict[str, Task] = field(default_factory=dict)
    since: float = 0.0  # monotonic time at which the first of them was started
    began: float = 0.0  # the same in seconds since the epoch
    #: Whether the pool was told that it runs.
    told: bool = False
    #: How many tasks were taken back that it has not yet come across.
    skipping: int = 0
    served: int = 0
    #: The task that ended last.
    ended: str = ""
    cancelled: str | None = None
    #: The signal that somebody had us send to its running task.
    signalled: int | None = None
    #: Whether it starts nothing more, since a task has spoilt its process.
    leaves: bool = False
    eof: bool = False
    #: Whether it was ended because something else than it has written to its connection.
    is_distrusted: bool = False
    #: Whether there were more claims than tasks.
    has_miscounted: bool = False

    @property
    def takes_tasks(self) -> bool:
        """Whether it may be sent more."""
        ends = self.eof or self.leaves or self.cancelled is not None
        return not ends and not self.skipping

    @property
    def is_astray(self) -> bool:
        """Whether it should have come back for more: it has no task, and one was taken from it."""
        return bool(self.pid and self.skipping and not self.tasks and not self.eof)

    def starts(self, now: float) -> None:
        """Take note that the first of the tasks is started, if there is one."""
        self.since, self.began = now, time.time()
        self.told = False
