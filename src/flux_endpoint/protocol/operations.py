"""The service's answers for operators: its status, an endpoint's status, lists of tasks.

Times are seconds since the epoch. New keys may be added to these answers; none are removed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from flux_endpoint.protocol.rest import TaskEventDocument, UuidText

#: What `GET /health` says of a part that can be used.
HEALTHY = "ok"
#: Free bytes below which a disk is practically full.
LEAST_FREE_BYTES = 100 << 20
#: The most tasks of one answer.
MAX_LISTED = 1000
#: The most bytes of a task's error in its record: those at the end.
LONGEST_ERROR = 16 << 10


class QueueDocument(BaseModel):
    """A queue at the broker: its ready messages, and its consumers."""

    messages: int
    consumers: int


class BrokerDocument(BaseModel):
    """The service's connection to its message broker."""

    connected: bool
    #: `host:port/vhost`, without credentials.
    address: str
    #: Product and version, e.g. `RabbitMQ 3.10.8`; empty until the first connection.
    server: str
    #: Time of the latest change of its state.
    since: float | None
    #: Why it is not connected.
    reason: str = ""
    #: The memory or disk alarm for which it blocks publishing; empty: it does not.
    alarm: str = ""

    @property
    def usable(self) -> bool:
        """Whether messages can be sent and received."""
        return self.connected and not self.alarm


class DatabaseDocument(BaseModel):
    """The service's database."""

    kind: Literal["sqlite", "postgresql"]
    #: Revision of its schema, and the one that this service needs.
    revision: str
    expected_revision: str
    #: Duration of a query in seconds.
    seconds: float
    #: Free bytes on its disk, if it is a file.
    free_bytes: int | None = None

    @property
    def is_nearly_full(self) -> bool:
        """Whether tasks and results can't be stored any more, or soon."""
        return self.free_bytes is not None and self.free_bytes < LEAST_FREE_BYTES


class ServiceStatusAnswer(BaseModel):
    """`GET /v3/status`."""

    version: str
    #: Name of the user whose token was used.
    user: str
    #: Start of the service, and its present time.
    started: float
    time: float
    database: DatabaseDocument
    broker: BrokerDocument
    #: The service's own queues by name; missing without a broker, or if a queue does not exist.
    queues: dict[str, QueueDocument] = Field(default_factory=dict)


class HealthAnswer(BaseModel):
    """`GET /health`: for each part "ok", or why it can't be used."""

    database: str
    broker: str

    @property
    def healthy(self) -> bool:
        """Whether the service can do its work."""
        return self.database == self.broker == HEALTHY


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
    #: Its start if it is online, else its last report; absent if unknown.
    since: float | None = None
    last_seen: float | None = None
    #: The last status report; see `endpoint.report`.
    report: dict[str, Any] = Field(default_factory=dict)
    #: Its task queue; absent without a broker.
    queue: QueueDocument | None = None


class LoginCodeAnswer(BaseModel):
    """`POST /v3/page/code`: a code that logs a browser in to the live page, once."""

    code: str
    #: Seconds for which it is valid.
    expires_in: float


class TakenTasksAnswer(BaseModel):
    """`GET /v3/endpoints/{id}/taken`: the unfinished tasks that an endpoint took, in any order."""

    tasks: list[str]


class ListedState(StrEnum):
    """States of a task in lists."""

    #: At the service; the broker does not have it yet.
    RECEIVED = "received"
    #: It is being sent to a worker.
    PENDING = "pending"
    #: It is a job that waits for resources.
    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    #: Cancelled on request.
    CANCELLED = "cancelled"


OPEN_STATES = frozenset(
    {ListedState.RECEIVED, ListedState.PENDING, ListedState.QUEUED, ListedState.RUNNING}
)
ENDED_STATES = frozenset(ListedState) - OPEN_STATES


class TaskSummary(BaseModel):
    """A task and its state."""

    task_id: str
    task_group_id: str
    endpoint_id: str
    #: Absent if the task follows a job.
    function_id: str | None
    function_name: str | None
    state: ListedState
    submitted: float
    #: Its start and its end, as far as its endpoint has reported them.
    started: float | None = None
    stopped: float | None = None
    #: When the service received its result.
    ended: float | None = None
    #: The last line of its error.
    error: str | None = None
    jobid: int | None = None
    #: Return code of an ended command; negative: the signal that ended it.
    returncode: int | None = None


class ListedTask(TaskSummary):
    """A task in a list, with what its endpoint has reported of its run."""

    #: Seconds from its submission to its start, and from its start to its end.
    queue_time: float | None = None
    run_time: float | None = None
    #: Host name of the node where it ran (of a job: its nodes, as a host list, RFC 29), and process
    #: id of the worker there (absent for a job).
    node: str | None = None
    worker: int | None = None
    #: How often it was started; more than once if a worker or job was lost, or by its retries.
    attempts: int | None = None
    #: Why the earlier attempts failed of a task with retries that has ended.
    failed_attempts: list[str] = Field(default_factory=list)
    #: CPU time (s) of its processes, and peak memory (bytes) of the largest of them.
    cpu_time: float | None = None
    max_rss: int | None = None
    #: The last line that it has printed: on standard output, if there is one. A command's output is
    #: in its result.
    printed: str | None = None


class TaskRecord(ListedTask):
    """`GET /v3/tasks/{id}`: one of the caller's tasks, whole."""

    endpoint_name: str | None = None
    #: When the broker had it.
    published: float | None = None
    resource_specification: dict[str, Any] | None = None
    #: See `protocol.run_options`.
    run_options: dict[str, Any] | None = None
    #: The last lines of its error; see `LONGEST_ERROR`.
    error_text: str | None = None
    #: The end of what it has printed, and the number of bytes before that.
    stdout: str = ""
    stderr: str = ""
    stdout_dropped: int = 0
    stderr_dropped: int = 0
    #: Events of its job, in order of arrival.
    events: list[TaskEventDocument] = Field(default_factory=list)
    #: What its result says of the program that made it: its Python, system and packages.
    details: dict[str, Any] = Field(default_factory=dict)


class FailureKind(BaseModel):
    """Tasks of a group that failed in the same way."""

    #: Type of the exception or code of the error, with which the last line of the error begins;
    #: "other": it begins with none.
    kind: str
    tasks: int
    #: The newest of them, and the last line of its error.
    task_id: str
    error: str


class GroupEndpoint(BaseModel):
    """An endpoint that tasks of a group were submitted to."""

    endpoint_id: str
    name: str
    tasks: int
    unfinished: int


class GroupReport(BaseModel):
    """`GET /v3/taskgroups/{id}`: how far a task group is."""

    task_group_id: str
    tasks: int
    succeeded: int
    failed: int
    #: Cancelled on request.
    cancelled: int
    #: All others: running, or waiting for other tasks, for a worker or for resources.
    unfinished: int
    running: int
    waiting_for_tasks: int
    #: When the first was submitted, and when the last result came; absent if there is none.
    submitted: float | None
    last_end: float | None
    #: Tasks that end per second: in the last ten minutes, or since the first submission if none
    #: has ended in these; absent if none has ended, or all have.
    rate: float | None
    #: When the last task will end at that rate.
    expected_end: float | None
    #: The failed tasks by kind, the most frequent first: of the newest 10,000, at most 20 kinds.
    failures: list[FailureKind] = Field(default_factory=list)
    endpoints: list[GroupEndpoint] = Field(default_factory=list)


#: A position in a stream after all that can come: nothing of it is wanted.
BEYOND = 2**61


def attempt_note(attempt: int) -> str:
    """Return the line that says where, in followed output, a further attempt begins."""
    return f"[... attempt {attempt} begins ...]\n"


class FollowOutput(BaseModel):
    """The query parameters of `GET /v3/tasks/{id}/output`."""

    #: Bytes of each stream that the caller has.
    stdout: int = Field(default=0, ge=0, lt=2**62)
    stderr: int = Field(default=0, ge=0, lt=2**62)
    #: Seconds to wait if there is nothing yet.
    wait: float = Field(default=20.0, ge=0, le=30)
    #: The attempt at the task, from 1, whose bytes these are. Callers that do not say it get the
    #: output of the first attempt while it runs, and at the end that of the last one.
    attempt: int | None = Field(default=None, ge=1, le=10_000)


class StreamPart(BaseModel):
    """A part of a stream: the positions of its first byte and after its last one, and its text.

    If the first is later than where the caller's part ended, what is between was not kept.
    """

    begin: int
    end: int
    text: str


class OutputAnswer(BaseModel):
    """`GET /v3/tasks/{id}/output`: what a task has printed after the given positions."""

    #: Whether the task has ended, so that this is all.
    ended: bool
    #: The attempt whose output this is. Each attempt's positions begin at 0.
    attempt: int = 1
    stdout: StreamPart | None = None
    stderr: StreamPart | None = None


class ListTasks(BaseModel):
    """The query parameters of `GET /v3/tasks`."""

    endpoint_id: UuidText | None = None
    task_group_id: UuidText | None = None
    #: Only tasks that have, or follow, the job with this id (in decimal).
    jobid: Annotated[str, StringConstraints(pattern="^[0-9]{1,20}$")] | None = None
    #: Only tasks in one of these states; default: all.
    state: list[ListedState] = Field(default_factory=list)
    limit: int = Field(default=50, ge=1, le=MAX_LISTED)
    #: The `next` of an earlier answer.
    before: str | None = None
    #: Whether to include tasks that only follow a job.
    follows: bool = True


class TasksAnswer(BaseModel):
    """`GET /v3/tasks`: the caller's tasks, the newest first."""

    tasks: list[ListedTask]
    #: `before` for a request of the next tasks; absent if there are none.
    next: str | None = None
