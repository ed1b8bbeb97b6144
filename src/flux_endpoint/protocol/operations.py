"""What an operator asks the service: how it is, how an endpoint is, what tasks there are.

Times are seconds since the epoch. These answers only ever get more keys.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, Field

from flux_endpoint.protocol.rest import UuidText

#: Tasks of one answer.
MAX_LISTED = 1000


class QueueDocument(BaseModel):
    """A queue of the broker: its messages that are with nobody, and who takes them."""

    messages: int
    consumers: int


class BrokerDocument(BaseModel):
    """The service's connection to its message broker."""

    connected: bool
    #: `host:port/vhost`, never with a password.
    address: str
    #: Product and version, e.g. `RabbitMQ 3.10.8`; empty until it was connected once.
    server: str
    #: When it came to be as it is.
    since: float | None
    #: Why it is not connected.
    reason: str = ""
    #: Why it takes no messages though it is connected: its memory or disk alarm. Empty: it does.
    alarm: str = ""

    @property
    def usable(self) -> bool:
        """Whether messages can be sent and received."""
        return self.connected and not self.alarm


class DatabaseDocument(BaseModel):
    """The service's database."""

    kind: Literal["sqlite", "postgresql"]
    #: Revision of its schema, and the one that this service works with.
    revision: str
    expected_revision: str
    #: Seconds that a query took.
    seconds: float
    #: Bytes that are free on its disk, where it is a file.
    free_bytes: int | None = None


class ServiceStatusAnswer(BaseModel):
    """`GET /v3/status`."""

    version: str
    #: Name of the user whose token it was.
    user: str
    #: When the service started, and what its clock says now.
    started: float
    time: float
    database: DatabaseDocument
    broker: BrokerDocument
    #: The service's own queues by name; without a broker, or a queue, there is none.
    queues: dict[str, QueueDocument] = Field(default_factory=dict)


class Absence(StrEnum):
    """Why an endpoint is offline."""

    NEVER = "never started"
    STOPPED = "stopped"
    SILENT = "silent"
    #: Its process has ended, as its own machine knows; the service has not missed a report yet.
    ENDED = "ended"


class EndpointStateAnswer(BaseModel):
    """`GET /v3/endpoints/{id}/status`."""

    endpoint_id: str
    name: str
    display_name: str | None
    owner: str
    status: Literal["online", "offline"]
    absence: Absence | None = None
    #: When it started, if it is online; when it was last heard of, if not; absent if unknown.
    since: float | None = None
    last_seen: float | None = None
    #: The last status report; see `endpoint.report`.
    report: dict[str, Any] = Field(default_factory=dict)
    #: The queue of its tasks; absent without a broker.
    queue: QueueDocument | None = None


class TakenTasksAnswer(BaseModel):
    """`GET /v3/endpoints/{id}/taken`: what an endpoint took and has not ended, in any order."""

    tasks: list[str]


class ListedState(StrEnum):
    """How far a task is."""

    #: The service has it, the broker not yet.
    RECEIVED = "received"
    #: It is on its way to a worker.
    PENDING = "pending"
    #: It is a job, which waits for resources.
    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    #: Ended on request.
    CANCELLED = "cancelled"


OPEN_STATES = frozenset(
    {ListedState.RECEIVED, ListedState.PENDING, ListedState.QUEUED, ListedState.RUNNING}
)
ENDED_STATES = frozenset(ListedState) - OPEN_STATES


class ListedTask(BaseModel):
    """A task in a list."""

    task_id: str
    task_group_id: str
    endpoint_id: str
    #: Absent if the task follows a job.
    function_id: str | None
    function_name: str | None
    state: ListedState
    submitted: float
    #: When it began to run and when it stopped, as far as its endpoint told.
    started: float | None = None
    stopped: float | None = None
    #: When the service had its result.
    ended: float | None = None
    #: The last line of its error.
    error: str | None = None
    jobid: int | None = None
    #: Of a command that has ended; negative: the signal that ended it.
    returncode: int | None = None


class ListTasks(BaseModel):
    """The query of `GET /v3/tasks`."""

    endpoint_id: UuidText | None = None
    task_group_id: UuidText | None = None
    #: Only tasks in one of these; default: all.
    state: list[ListedState] = Field(default_factory=list)
    limit: int = Field(default=50, ge=1, le=MAX_LISTED)
    #: `next` of an earlier answer.
    before: str | None = None
    #: Whether the tasks that only follow a job are listed, too.
    follows: bool = True


class TasksAnswer(BaseModel):
    """`GET /v3/tasks`: the caller's tasks, the newest first."""

    tasks: list[ListedTask]
    #: `before` of the request for those that follow; absent if there are none.
    next: str | None = None
