"""What the pool knows of its tasks and managers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from flux_endpoint.engine.backend import JobFuture
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.engine.demand import Amount
from flux_endpoint.engine.outcome import error_of, has_timed_out, was_cancelled
from flux_endpoint.engine.workers.states import MANAGER_STATES, ManagerChange, ManagerState


@dataclass(eq=False)
class TaskEntry:
    """A task that has not ended."""

    task: EngineTask
    on_result: Callable[[EngineResult], None]
    #: Whether it is not run: a worker only formats its command.
    formats: bool = False
    #: Why each attempt so far was lost.
    attempts: list[str] = field(default_factory=list)
    cancelled: bool = False
    #: When it was started that has ended without a result, in seconds since the epoch.
    started: float | None = None


@dataclass(eq=False)
class ManagerRecord:
    """A manager and the tasks that it holds."""

    manager_id: str
    workers: int
    job: JobFuture
    #: Whether it stays when it has nothing to do.
    permanent: bool = False
    #: What it has of its node.
    amount: Amount = field(default_factory=Amount)
    state: ManagerState = ManagerState.STARTING
    #: Monotonic times at which its job was submitted, lacked nothing but resources, and had them,
    #: and at which it came up.
    submitted_at: float = 0.0
    eligible_at: float = math.inf
    allocated_at: float | None = None
    greeted_at: float | None = None
    #: Its node's name, if the scheduler told.
    node: str = ""
    host: str = ""
    #: How many tasks each of its workers may hold: more than one where tasks are short.
    ahead: int = 1
    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    idle_since: float = 0.0
    #: Monotonic time of its latest result, or of what we asked it for since.
    quiet_since: float = 0.0
    #: What it held when it was asked what it holds, and that question.
    asked: list[str] = field(default_factory=list)
    question: bytes = b""
    #: Whether it was started as one would be now; else it gets no new tasks.
    is_current: bool = True
    #: Whether it waits for all tasks of before to be submitted, and what nobody wants of it.
    awaits_go: bool = False
    unwanted: list[str] = field(default_factory=list)
    #: When it said that it ends: what it ran then, with the start of each.
    ran: dict[str, float] | None = None
    #: Whether its job has left nothing behind, as far as Flux knows.
    is_clean: bool = False
    #: Why what it runs is lost, and when it counts as dead if it says nothing, in monotonic time.
    why: str = ""
    dead_at: float = math.inf

    def change(self, event: ManagerChange) -> None:
        """Take note of what happens to it; what means nothing in its state changes nothing."""
        self.state = MANAGER_STATES.after(self.state, event)

    @property
    def is_known_dead(self) -> bool:
        """Whether Flux has ended its processes; of a node that is lost to Flux, nobody knows."""
        error = error_of(self.job) if self.job.done() else None
        return self.is_clean and (was_cancelled(error) or has_timed_out(error))

    @property
    def place(self) -> str:
        """Which node it is on, as far as that is known."""
        return self.node or self.host or self.manager_id

    @property
    def room(self) -> int:
        """How many more tasks it may hold."""
        return self.workers * (self.ahead + 1) - len(self.tasks)

    @property
    def free(self) -> int:
        """How many of its workers have nothing to do."""
        return max(0, self.workers - len(self.tasks)) if self.state is ManagerState.READY else 0

    @property
    def surplus(self) -> int:
        """How many of its tasks wait for a worker."""
        if not self.state.is_serving:
            return 0
        return max(0, len(self.tasks) - self.workers)
