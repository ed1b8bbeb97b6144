"""The pool's state of its tasks and managers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from flux_endpoint.engine.backend import JobFuture
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.engine.demand import Amount
from flux_endpoint.engine.outcome import error_of, has_timed_out, was_cancelled
from flux_endpoint.engine.workers.states import MANAGER_STATES, ManagerChange, ManagerState
from flux_endpoint.engine.workers.waiting import most_held, tasks_ahead


@dataclass(eq=False)
class TaskEntry:
    """A task that has not ended."""

    task: EngineTask
    on_result: Callable[[EngineResult], None]
    #: Whether a worker only formats its command.
    formats: bool = False
    #: Why each earlier attempt has failed.
    attempts: list[str] = field(default_factory=list)
    cancelled: bool = False
    #: Start of an attempt that ended without a result, in seconds since the epoch.
    started: float | None = None


@dataclass(eq=False)
class ManagerRecord:
    """A manager and the tasks that it holds."""

    manager_id: str
    workers: int
    job: JobFuture
    #: Whether it stays when idle.
    permanent: bool = False
    #: Its resources on its node.
    amount: Amount = field(default_factory=Amount)
    state: ManagerState = ManagerState.STARTING
    #: Monotonic times at which its job was submitted, waited for resources only, and had them, and
    #: at which the manager came up.
    submitted_at: float = 0.0
    eligible_at: float = math.inf
    allocated_at: float | None = None
    greeted_at: float | None = None
    #: Its node's name, if the scheduler reported it.
    node: str = ""
    host: str = ""
    #: How long its tasks take.
    task_seconds: float = 1.0
    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    idle_since: float = 0.0
    #: Monotonic time of its latest result, or of a later request to return tasks.
    quiet_since: float = 0.0
    #: The tasks that it held when it was asked, and the number of that question.
    asked: list[str] = field(default_factory=list)
    question: bytes = b""
    #: Whether its configuration is the present one; else it gets no new tasks.
    is_current: bool = True
    #: Whether it waits for `go` until all earlier tasks are submitted, and its unwanted tasks.
    awaits_go: bool = False
    unwanted: list[str] = field(default_factory=list)
    #: Set when it said that it ends: its running tasks then, with their starts.
    ran: dict[str, float] | None = None
    #: Whether its job has left no processes, as far as Flux knows.
    is_clean: bool = False
    #: Why its running tasks are lost, and the monotonic time at which it counts as dead if silent.
    why: str = ""
    dead_at: float = math.inf

    def change(self, event: ManagerChange) -> None:
        """Apply an event; one without a transition in this state changes nothing."""
        self.state = MANAGER_STATES.after(self.state, event)

    @property
    def is_known_dead(self) -> bool:
        """Whether Flux has ended its processes; on a node that Flux has lost, this is unknown."""
        error = error_of(self.job) if self.job.done() else None
        return self.is_clean and (was_cancelled(error) or has_timed_out(error))

    @property
    def place(self) -> str:
        """Its node, as far as it is known."""
        return self.node or self.host or self.manager_id

    @property
    def room(self) -> int:
        """Number of further tasks that it may hold."""
        return most_held(self.workers, tasks_ahead(self.task_seconds)) - len(self.tasks)

    @property
    def free(self) -> int:
        """Number of its idle workers."""
        return max(0, self.workers - len(self.tasks)) if self.state is ManagerState.READY else 0

    @property
    def surplus(self) -> int:
        """Number of its tasks that wait for a worker."""
        if not self.state.is_serving:
            return 0
        return max(0, len(self.tasks) - self.workers)

    @property
    def reserve(self) -> float:
        """Seconds for which its workers have tasks."""
        return self.surplus / self.workers * self.task_seconds
