"""The lifecycle of a host: the job that holds an allocation, and the process that it runs."""

from __future__ import annotations

from enum import Enum

from flux_endpoint.engine.state_table import StateTable


class HostState(Enum):
    """The state of a host."""

    #: Its job was submitted, and its process has not greeted yet.
    STARTING = "starting"
    IDLE = "idle"
    #: It runs a task.
    BUSY = "busy"
    #: It gets no more tasks, and ends after its running one.
    LEAVING = "leaving"
    #: Its job has ended; what it has not reported is read from its files.
    GONE = "gone"


class HostChange(Enum):
    """Events of a host."""

    GREETING = "greets"
    TASK = "gets a task"
    TASK_ENDED = "task ended"
    LEAVE = "leave"
    JOB_ENDED = "job ended"


_LEAVES = {HostChange.LEAVE: HostState.LEAVING, HostChange.JOB_ENDED: HostState.GONE}

HOST_STATES = StateTable[HostState, HostChange](
    # A host from before a restart ends after its task, without an agent.
    (HostState.STARTING, HostState.LEAVING),
    {
        HostState.STARTING: {HostChange.GREETING: HostState.IDLE, **_LEAVES},
        HostState.IDLE: {HostChange.TASK: HostState.BUSY, **_LEAVES},
        HostState.BUSY: {HostChange.TASK_ENDED: HostState.IDLE, **_LEAVES},
        HostState.LEAVING: {HostChange.JOB_ENDED: HostState.GONE},
    },
    {"serving": [HostState.STARTING, HostState.IDLE, HostState.BUSY]},
)
