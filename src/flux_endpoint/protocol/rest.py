"""REST requests and answers, as the official client sends and expects them.

Ids are lower-case UUID strings with dashes. Unknown keys in a request are ignored, so that a newer
client can talk to an older service.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from flux_endpoint.protocol.fields import Description, JsonObject, Strategies, TaskOptions

API_VERSION = "1.0.0"
MIN_SDK_VERSION = "2.0.0"
MIN_ENDPOINT_VERSION = "2.0.0"

#: Header that makes a repeated submission harmless: same key, same answer, run once.
IDEMPOTENCY_HEADER = "Idempotency-Key"


def _directory_name(value: str) -> str:
    if value.startswith(".") or "/" in value or not value.isprintable():
        raise ValueError("must not begin with '.', nor have '/' or unprintable characters in it")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must have no unprintable characters in it")
    return value


def _canonical_uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise ValueError(f"{text!r} is not a UUID") from None


#: A UUID as text, normalized to lower case with dashes.
UuidText = Annotated[str, AfterValidator(_canonical_uuid)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
#: A name for people.
Label = Annotated[str, StringConstraints(max_length=256), AfterValidator(_printable)]
#: Endpoints keep their files in a directory of this name.
EndpointName = Annotated[Name, AfterValidator(_directory_name)]
#: A user's or a group's name.
Principal = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
#: What is asked for as a task's id; need not be one.
TaskIdText = Annotated[str, StringConstraints(max_length=64)]

#: The most tasks whose state one request asks for.
MAX_STATUS_IDS = 10_000


class VersionAnswer(BaseModel):
    """`GET /v2/version?service=all`."""

    api: str = API_VERSION
    min_sdk_version: str = MIN_SDK_VERSION
    min_ep_version: str = MIN_ENDPOINT_VERSION


class RegisterFunction(BaseModel):
    """`POST /v3/functions`.

    `function_code` is a packed buffer if `serialized`, else bare Python source. The service honours
    neither `group` nor `ha_endpoint_id`, and refuses them.
    """

    function_name: Name
    function_code: str
    serialized: bool = True
    description: Description | None = None
    meta: JsonObject | None = None
    public: bool = False
    group: Name | None = None
    ha_endpoint_id: Name | None = None


class FunctionAnswer(BaseModel):
    """Answer to a function registration."""

    function_uuid: str


class SubmitBatch(BaseModel):
    """`POST /v3/endpoints/{id}/submit`: payloads by function id, and what holds for all of them."""

    tasks: dict[UuidText, list[str]] = Field(min_length=1)
    create_queue: bool = False
    task_group_id: UuidText | None = None
    resource_specification: TaskOptions | None = None
    user_endpoint_config: JsonObject | None = None
    result_serializers: Strategies | None = None
    user_runtime: JsonObject | None = None


class SubmitAnswer(BaseModel):
    """Task ids by function id, each list in the order of the payloads."""

    request_id: str
    task_group_id: str
    endpoint_id: str
    tasks: dict[str, list[str]]
    #: Whether the endpoint can take the tasks now, for this project's clients, and when it was
    #: last heard of (seconds since the epoch).
    endpoint_status: Literal["online", "offline"] | None = None
    endpoint_last_seen: float | None = None


class TaskDocument(BaseModel):
    """`GET /v2/tasks/{id}`; `completion_t` is seconds since the epoch as text, once final."""

    task_id: str
    status: str
    result: str | None = None
    exception: str | None = None
    completion_t: str | None = None
    details: dict[str, Any] | None = None
    reason: str | None = None


class BatchStatus(BaseModel):
    """`POST /v2/batch_status`."""

    task_ids: list[TaskIdText] = Field(max_length=MAX_STATUS_IDS)


class TaskGroupMember(BaseModel):
    """One task of a group."""

    id: str


class TaskGroupAnswer(BaseModel):
    """`GET /v2/taskgroup/{id}`."""

    taskgroup_id: str
    tasks: list[TaskGroupMember]


class ResultConnection(BaseModel):
    """`GET /v2/get_amqp_result_connection_url`."""

    queue_prefix: str
    connection_url: str


class KillTask(BaseModel):
    """`POST /v2/tasks/{id}/kill`: end a task, or with `signum` signal its processes."""

    signum: int | None = Field(default=None, ge=1, le=64)


class KillAnswer(BaseModel):
    """What becomes of a request to end a task: its state, and whether the endpoint was told."""

    task_id: str
    status: str
    delivered: bool


class AttachJob(BaseModel):
    """`POST /v3/endpoints/{id}/attach`: follow a job that runs there already."""

    #: Flux job id: an integer or any printed form.
    jobid: int | Name
    task_group_id: UuidText | None = None
    create_queue: bool = False
    result_serializers: Strategies | None = None


class AttachAnswer(BaseModel):
    """The task that follows the job."""

    task_id: str
    task_group_id: str
    endpoint_id: str
    #: As of `SubmitAnswer`.
    endpoint_status: Literal["online", "offline"] | None = None
    endpoint_last_seen: float | None = None


class TaskEventDocument(BaseModel):
    """A job event as it was stored; see `protocol.messages.TaskEvent`."""

    task_id: str
    jobid: int | None
    name: str
    timestamp: float
    context: dict[str, Any]


class TaskEventsAnswer(BaseModel):
    """`GET /v2/tasks/{id}/events`: the events so far, in their order."""

    task_id: str
    events: list[TaskEventDocument]


class ResultQueueRequest(BaseModel):
    """`POST /v2/taskgroup/{id}/results`: a queue of its own for a client, a UUID of its choice.

    With `bundles` several results may come in one message (see `amqp.bundle`).
    """

    client_id: UuidText
    bundles: bool = False


class EventQueueRequest(BaseModel):
    """`POST /v2/taskgroup/{id}/events`: likewise; clients that name none share one queue."""

    client_id: UuidText | None = None


class GroupQueueAnswer(BaseModel):
    """The queue that a task group's results, or its job events, go to from now on."""

    queue: str
    connection_url: str


class RegisterEndpoint(BaseModel):
    """`POST /v3/endpoints` and `PUT /v3/endpoints/{id}`.

    The service honours neither `high_assurance` nor `authentication_policy`, and refuses them.
    """

    endpoint_name: EndpointName
    display_name: Label | None = None
    multi_user: bool = False
    public: bool = False
    allowed_functions: list[UuidText] | None = Field(default=None, max_length=10_000)
    #: Who may run tasks there besides the owner: users by name ("*": all), and groups of users.
    users: list[Principal] | None = Field(default=None, max_length=1000)
    groups: list[Principal] | None = Field(default=None, max_length=1000)
    high_assurance: bool = False
    authentication_policy: Name | None = None
    metadata: JsonObject = Field(default_factory=dict)


class EndpointTokenAnswer(BaseModel):
    """`POST /v3/endpoints/{id}/tokens`: a token that is good for being this endpoint, no more."""

    endpoint_id: str
    token: str


class EndpointStatusAnswer(BaseModel):
    """`GET /v2/endpoints/{id}/status`; `details` is the last status report."""

    status: Literal["online", "offline"]
    details: dict[str, Any] = Field(default_factory=dict)
    #: Seconds since the epoch of the last report, absent if there never was one.
    last_seen: float | None = None


class LockAnswer(BaseModel):
    """`POST /v3/endpoints/{id}/lock`.

    The end of the lock (UTC, ISO 8601), and whether the endpoint was online to be stopped.
    """

    endpoint_id: str
    lock_expiration_timestamp: str
    delivered: bool


class EndpointSummary(BaseModel):
    """An element of `GET /v2/endpoints`."""

    uuid: str
    name: str
    display_name: str | None
    owner: str


class ErrorBody(BaseModel):
    """Every error answer. `message` and `reason` say the same (each client reads another)."""

    code: str
    message: str
    reason: str
    status: Literal["Failed"] = "Failed"
    http_status_code: int
    request_id: str
    #: Dotted name of the request's field that was wrong.
    field: str | None = None
