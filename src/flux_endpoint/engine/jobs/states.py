"""The lifecycle of a task's job: all transitions; each task ends exactly once."""

from __future__ import annotations

from enum import Enum, IntEnum

from flux_endpoint.engine.state_table import StateTable
from flux_endpoint.protocol.states import TaskState


class JobState(Enum):
    """The state of a job."""

    #: It has no resources yet.
    WAITING = "waiting"
    #: It was submitted before a restart; whether it has resources is not known yet.
    FOUND = "found"
    ALLOCATED = "allocated"
    RUNNING = "running"
    #: An exception ended it; its processes may still be alive.
    CLEARING = "clearing"
    #: Its processes are gone, and its future is not done yet.
    CLEAN = "clean"
    #: Another thread reads how it ended; until then nothing is done to it.
    READING = "reading"
    #: It ended with the instance, whose loss will be reported in a moment.
    AWAITING_LOSS = "awaiting loss"
    #: Its task has a result.
    ENDED = "ended"
    #: Its task has no result here: it gets another job, or is left to others.
    RELEASED = "released"


class JobChange(Enum):
    """Events of a job."""

    ALLOC = "alloc"
    START = "start"
    CLEAN = "clean"
    #: Its future has an exception of the job.
    EXCEPTION = "exception"
    #: Its future is done otherwise.
    DONE = "done"
    INSTANCE_ENDS = "instance ends"
    RESULT = "result"
    RELEASE = "release"


#: Events of Flux (RFC 21) that change a job's state, and the task's states that they imply.
JOB_CHANGES = {"alloc": JobChange.ALLOC, "start": JobChange.START, "clean": JobChange.CLEAN}
TASK_STATES = {
    "submit": TaskState.WAITING_FOR_NODES,
    "start": TaskState.EXEC_START,
    "finish": TaskState.EXEC_END,
}
#: The phases that a job can reach before it ends; the meaning of its end depends on them.
PROGRESS = (JobState.WAITING, JobState.FOUND, JobState.ALLOCATED, JobState.RUNNING)
HAS_RESOURCES = (JobState.ALLOCATED, JobState.RUNNING)

_Ways = dict[JobChange, JobState]
_TASK_LEAVES: _Ways = {JobChange.RESULT: JobState.ENDED, JobChange.RELEASE: JobState.RELEASED}
_FROM_RUNNING: _Ways = {
    JobChange.CLEAN: JobState.CLEAN,
    JobChange.EXCEPTION: JobState.CLEARING,
    JobChange.DONE: JobState.READING,
    JobChange.INSTANCE_ENDS: JobState.AWAITING_LOSS,
    **_TASK_LEAVES,
}
_FROM_ALLOCATED: _Ways = {JobChange.START: JobState.RUNNING, **_FROM_RUNNING}
_FROM_WAITING: _Ways = {JobChange.ALLOC: JobState.ALLOCATED, **_FROM_ALLOCATED}

JOB_STATES = StateTable[JobState, JobChange](
    (JobState.WAITING, JobState.FOUND),
    {
        JobState.WAITING: _FROM_WAITING,
        JobState.FOUND: _FROM_WAITING,
        JobState.ALLOCATED: _FROM_ALLOCATED,
        JobState.RUNNING: _FROM_RUNNING,
        JobState.CLEARING: {JobChange.CLEAN: JobState.READING, **_TASK_LEAVES},
        JobState.CLEAN: {
            JobChange.EXCEPTION: JobState.READING,
            JobChange.DONE: JobState.READING,
            JobChange.INSTANCE_ENDS: JobState.AWAITING_LOSS,
            **_TASK_LEAVES,
        },
        JobState.READING: {JobChange.INSTANCE_ENDS: JobState.AWAITING_LOSS, **_TASK_LEAVES},
        JobState.AWAITING_LOSS: _TASK_LEAVES,
    },
    {
        "has_task": [s for s in JobState if s not in (JobState.ENDED, JobState.RELEASED)],
        "alive": PROGRESS,
    },
)


class Wish(IntEnum):
    """A request of the endpoint to end a job; a stronger one replaces a weaker one.

    It is not part of the state: a job may start, or end by itself, after it was asked to end.
    """

    NONE = 0
    #: It must not start here any more: its task is left to others.
    WITHDRAW = 1
    #: Its task was cancelled.
    CANCEL = 2
