"""The lifecycle of a worker manager: its job starts, it connects to the pool, and it ends."""

from __future__ import annotations

from enum import Enum

from flux_endpoint.engine.state_table import StateTable


class ManagerState(Enum):
    """The state of a manager."""

    #: Recovered after a restart; it has not reported its tasks yet.
    FOUND = "found"
    #: Its job was submitted, and it has not connected to the pool yet.
    STARTING = "starting"
    READY = "ready"
    #: It gets no more tasks, and ends after its running tasks.
    DRAINING = "draining"
    #: It was asked to end, or its job was cancelled.
    STOPPING = "stopping"
    #: It has said that it ends; how its job ended is not known yet.
    LEAVING = "leaving"
    #: Its job has ended; Flux is being asked whether the instance ends with it.
    UNEXPLAINED = "unexplained"
    #: It is given up; its processes may still run.
    OVER = "over"
    #: Its processes have ended, and it is forgotten.
    GONE = "gone"

    @property
    def is_serving(self) -> bool:
        """Whether it runs tasks for the pool."""
        return self in (ManagerState.READY, ManagerState.DRAINING)

    @property
    def is_ending(self) -> bool:
        """Whether it is ending, or has ended."""
        return self in (
            ManagerState.STOPPING,
            ManagerState.LEAVING,
            ManagerState.UNEXPLAINED,
            ManagerState.OVER,
            ManagerState.GONE,
        )


class ManagerChange(Enum):
    """Events of a manager."""

    GREETING = "greets"
    #: It was started with another configuration than the present one.
    OUTDATED_GREETING = "greets, outdated"
    DRAIN = "a job needs its cores"
    KEEP = "no job does any more"
    STOP = "stop"
    BYE = "says that it ends"
    JOB_ENDED = "job ended, cause unknown"
    GIVE_UP = "give up"
    DEAD = "processes ended"


_ENDS = {
    ManagerChange.JOB_ENDED: ManagerState.UNEXPLAINED,
    ManagerChange.GIVE_UP: ManagerState.OVER,
    ManagerChange.DEAD: ManagerState.GONE,
}

MANAGER_STATES = StateTable[ManagerState, ManagerChange](
    (ManagerState.STARTING, ManagerState.FOUND),
    {
        ManagerState.FOUND: {
            ManagerChange.GREETING: ManagerState.READY,
            ManagerChange.OUTDATED_GREETING: ManagerState.DRAINING,
            ManagerChange.STOP: ManagerState.STOPPING,
            **_ENDS,
        },
        ManagerState.STARTING: {
            ManagerChange.GREETING: ManagerState.READY,
            ManagerChange.STOP: ManagerState.STOPPING,
            **_ENDS,
        },
        ManagerState.READY: {
            ManagerChange.DRAIN: ManagerState.DRAINING,
            ManagerChange.STOP: ManagerState.STOPPING,
            ManagerChange.BYE: ManagerState.LEAVING,
            **_ENDS,
        },
        ManagerState.DRAINING: {
            ManagerChange.KEEP: ManagerState.READY,
            ManagerChange.STOP: ManagerState.STOPPING,
            ManagerChange.BYE: ManagerState.LEAVING,
            **_ENDS,
        },
        ManagerState.STOPPING: _ENDS,
        ManagerState.LEAVING: _ENDS,
        ManagerState.UNEXPLAINED: {
            ManagerChange.GIVE_UP: ManagerState.OVER,
            ManagerChange.DEAD: ManagerState.GONE,
        },
        ManagerState.OVER: {ManagerChange.DEAD: ManagerState.GONE},
    },
    {
        "alive": (
            ManagerState.FOUND,
            ManagerState.STARTING,
            ManagerState.READY,
            ManagerState.DRAINING,
            ManagerState.STOPPING,
            ManagerState.LEAVING,
        ),
    },
)
