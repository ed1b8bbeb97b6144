"""One job of the embedded executor: its state, its events and their watchers."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable
from typing import Any

from flux_endpoint.engine.local.event_log import EventLogEvent
from flux_endpoint.engine.local.jobspec import LocalJobspec
from flux_endpoint.engine.local.launch import LaunchedTask, Launcher
from flux_endpoint.engine.local.resources import Allocation
from flux_endpoint.processes.helper.shell import exit_code
from flux_endpoint.protocol.jobid import format_jobid

#: Called with each event of a job, finally with `None`, on the instance's thread. Must not block.
Watcher = Callable[[EventLogEvent | None], None]

#: Flux's priority of a job with urgency 31.
EXPEDITE = 4294967295


def check_urgency(urgency: int) -> None:
    """Raise OSError (EINVAL) for an urgency that there is not, as Flux does."""
    if not 0 <= urgency <= 31:
        raise OSError(errno.EINVAL, "urgency range is [0:31]")


def priority_of(urgency: int) -> int:
    """Return the priority of a job with an urgency; 0: it is held."""
    return EXPEDITE if urgency == 31 else urgency


class LocalJobState(enum.Enum):
    """States of a job."""

    PENDING = "pending"
    RUNNING = "running"
    INACTIVE = "inactive"


class LocalJob:
    """A job's record. Owned by the instance's thread."""

    def __init__(self, jobid: int, spec: LocalJobspec, urgency: int) -> None:
        self.id = jobid
        self.spec: LocalJobspec | None = spec  # dropped at the end: environments are large
        self.priority = priority_of(urgency)
        self.state = LocalJobState.PENDING
        self.events: list[EventLogEvent] = []
        #: The execution eventlog, Flux's `guest.exec.eventlog`.
        self.exec_events: list[EventLogEvent] = []
        self.allocation: Allocation = ()
        self.launcher: Launcher | None = None
        self.tasks: list[list[LaunchedTask]] = []
        self.pids: dict[int, int] = {}  # task rank -> pid
        self.shell_started = False
        self.statuses: dict[int, int] = {}  # index of the node -> wait status of its shell
        self.task_exited = False
        #: Whether a fatal exception is already ending it.
        self.is_ending = False
        self._watchers: list[Watcher] = []

    @property
    def is_ready(self) -> bool:
        """Whether it waits, or has waited, for resources only."""
        return any(event.name == "depend" for event in self.events)

    def set_urgency(self, urgency: int) -> None:
        """Change the urgency of a pending job.

        Raises:
            OSError: EINVAL: it is not pending, or there is no such urgency.
        """
        check_urgency(urgency)
        if self.state is not LocalJobState.PENDING:
            raise OSError(errno.EINVAL, f"job is {self.state.value}")
        self.priority = priority_of(urgency)
        self.post("urgency", userid=os.getuid(), urgency=urgency)
        if self.is_ready:
            self.post("priority", priority=self.priority)

    @property
    def groups(self) -> list[str]:
        """Keys of the process groups, one for each node."""
        return [f"{format_jobid(self.id)}/{index}" for index in range(len(self.tasks))]

    def watch(self, watcher: Watcher) -> None:
        """Give `watcher` all events, past ones first."""
        for event in self.events:
            watcher(event)
        if self.state is LocalJobState.INACTIVE:
            watcher(None)
        else:
            self._watchers.append(watcher)

    def post(self, name: str, **context: Any) -> None:
        """Add an event to the main eventlog."""
        event = EventLogEvent.now(name, **context)
        self.events.append(event)
        for watcher in self._watchers:
            watcher(event)

    def post_exec(self, name: str, **context: Any) -> None:
        """Add an event to the execution eventlog."""
        self.exec_events.append(EventLogEvent.now(name, **context))

    def post_task_exit(self, task: LaunchedTask, status: int) -> None:
        """Add the end of a task's process to the execution eventlog.

        Args:
            task: the task.
            status: wait status of the process.
        """
        self.post_exec(
            "shell.task-exit",
            localid=task.local_id,
            rank=task.rank,
            state="Exited",
            pid=self.pids.get(task.rank, 0),
            wait_status=status,
            signaled=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            exitcode=exit_code(status),
        )

    def retire(self) -> None:
        """Make the job inactive: there are no more events."""
        self.state = LocalJobState.INACTIVE
        watchers, self._watchers = self._watchers, []
        self.spec = self.launcher = None
        self.tasks = []
        for watcher in watchers:
            watcher(None)
