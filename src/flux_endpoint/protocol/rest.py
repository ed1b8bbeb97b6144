"""REST requests and answers, in the official client's format.

Ids are lower-case UUID strings with dashes. Unknown keys in a request are ignored, so that newer
clients can use older services.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from flux_endpoint.protocol.fields import Description, JsonObject, Strategies, TaskOptions
from flux_endpoint.protocol.resources import MAX_URGENCY

API_VERSION = "1.0.0"
MIN_SDK_VERSION = "2.0.0"
MIN_ENDPOINT_VERSION = "2.0.0"

#: Header of a submission: requests with the same key run once and get the same answer.
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
#: A name shown to people.
Label = Annotated[str, StringConstraints(max_length=256), AfterValidator(_printable)]
#: Name of an endpoint; also the name of its directory.
EndpointName = Annotated[Name, AfterValidator(_directory_name)]
#: A user's or a group's name.
Principal = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
#: A text given as a task's id; it may be invalid.
TaskIdText = Annotated[str, StringConstraints(max_length=64)]

#: The most tasks in a status request.
MAX_STATUS_IDS = 10_000

#: Maximum number of tasks whose results one task takes, and of those that it only waits for.
MAX_NEEDS = 1000


class VersionAnswer(BaseModel):
    """`GET /v2/version?service=all`."""

    api: str = API_VERSION
    min_sdk_version: str = MIN_SDK_VERSION
    min_ep_version: str = MIN_ENDPOINT_VERSION


class RegisterFunction(BaseModel):
    """`POST /v3/functions`.

    `function_code` is a packed buffer if `serialized`, else Python source. The service does not
    support `group` or `ha_endpoint_id`, and rejects them.
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
    """The answer to a function registration."""

    function_uuid: str


class TaskNeeds(BaseModel):
    """The tasks that a task waits for: its owner's, and all must succeed.

    The results of `values` are sent to the task's endpoint, in this order.
    """

    values: list[TaskIdText] = Field(default_factory=list, max_length=MAX_NEEDS)
    after: list[TaskIdText] = Field(default_factory=list, max_length=MAX_NEEDS)


class SubmitBatch(BaseModel):
    """`POST /v3/endpoints/{id}/submit`: payloads by function id, and options for all of them."""

    tasks: dict[UuidText, list[str]] = Field(min_length=1)
    create_queue: bool = False
    task_group_id: UuidText | None = None
    resource_specification: TaskOptions | None = None
    user_endpoint_config: JsonObject | None = None
    result_serializers: Strategies | None = None
    user_runtime: JsonObject | None = None
    #: For this project's clients, by function id: for each payload what it waits for.
    needs: dict[str, list[TaskNeeds | None]] | None = None
    #: For this project's clients and endpoints: see `protocol.run_options`.
    run_options: TaskOptions | None = None


class SubmitAnswer(BaseModel):
    """Task ids by function id, each list in the order of the payloads."""

    request_id: str
    task_group_id: str
    endpoint_id: str
    tasks: dict[str, list[str]]
    #: For this project's clients: whether the endpoint can take the tasks now, and the time of its
    #: last report (seconds since the epoch).
    endpoint_status: Literal["online", "offline"] | None = None
    endpoint_last_seen: float | None = None


#: A call for the cache of results: a hash of its function, arguments and environment.
CacheKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

#: The most keys in a request about the cache.
MAX_CACHE_KEYS = 10_000


class CacheQuery(BaseModel):
    """`POST /v3/cache/find`: the calls whose results are wanted."""

    keys: list[CacheKey] = Field(max_length=MAX_CACHE_KEYS)


class CacheEntries(BaseModel):
    """`POST /v3/cache`, and the answer to a query: tasks by their calls."""

    tasks: dict[CacheKey, UuidText] = Field(max_length=MAX_CACHE_KEYS)


class CachedFunction(BaseModel):
    """The cached results of one function, `bytes` in all; times are seconds since the epoch."""

    function_name: str
    results: int
    bytes: int
    newest: float


class CacheAnswer(BaseModel):
    """`GET /v3/cache`: what the cache has, by function; `DELETE`: what it had."""

    results: int
    functions: list[CachedFunction] = []


class BatchStatus(BaseModel):
    """`POST /v2/batch_status`."""

    task_ids: list[TaskIdText] = Field(max_length=MAX_STATUS_IDS)
    #: Whether the details should have what the tasks have printed; official clients don't ask.
    output: bool = False


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
    """`POST /v2/tasks/{id}/kill`: end a task, or send `signum` to its processes."""

    signum: int | None = Field(default=None, ge=1, le=64)


class KillAnswer(BaseModel):
    """The answer to a kill request: the task's state, and whether the endpoint was notified."""

    task_id: str
    status: str
    delivered: bool


class SetUrgency(BaseModel):
    """`POST /v3/tasks/{id}/urgency`: 0 holds the task; null is what it was submitted with."""

    urgency: int | None = Field(ge=0, le=MAX_URGENCY)


class UrgencyAnswer(BaseModel):
    """The task's state, and whether its endpoint was notified: not if it has ended."""

    task_id: str
    status: str
    delivered: bool


class AttachJob(BaseModel):
    """`POST /v3/endpoints/{id}/attach`: follow a job that is running there."""

    #: Flux job id: an integer, or text in any printed form.
    jobid: int | Name
    task_group_id: UuidText | None = None
    create_queue: bool = False
    result_serializers: Strategies | None = None


class AttachAnswer(BaseModel):
    """The task that follows the job."""

    task_id: str
    task_group_id: str
    endpoint_id: str
    #: See `SubmitAnswer`.
    endpoint_status: Literal["online", "offline"] | None = None
    endpoint_last_seen: float | None = None


class TaskEventDocument(BaseModel):
    """A stored job event; see `protocol.messages.TaskEvent`."""

    task_id: str
    jobid: int | None
    name: str
    timestamp: float
    context: dict[str, Any]


class TaskEventsAnswer(BaseModel):
    """`GET /v2/tasks/{id}/events`: the events so far, in order."""

    task_id: str
    events: list[TaskEventDocument]


class ResultQueueRequest(BaseModel):
    """`POST /v2/taskgroup/{id}/results`: a client's own queue, named by a UUID of its choice.

    With `bundles`, one message may have several results (see `amqp.bundle`).
    """

    client_id: UuidText
    bundles: bool = False


class EventQueueRequest(BaseModel):
    """`POST /v2/taskgroup/{id}/events`: the same; clients without an id share one queue."""

    client_id: UuidText | None = None


class GroupQueueAnswer(BaseModel):
    """The queue for a task group's results, or its job events."""

    queue: str
    connection_url: str


class RegisterEndpoint(BaseModel):
    """`POST /v3/endpoints` and `PUT /v3/endpoints/{id}`.

    The service does not support `high_assurance` or `authentication_policy`, and rejects them.
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
    """`POST /v3/endpoints/{id}/tokens`: a token that only allows acting as this endpoint."""

    endpoint_id: str
    token: str


class EndpointStatusAnswer(BaseModel):
    """`GET /v2/endpoints/{id}/status`; `details` is the last status report."""

    status: Literal["online", "offline"]
    details: dict[str, Any] = Field(default_factory=dict)
    #: Time of the last report, in seconds since the epoch; absent if there was none.
    last_seen: float | None = None


class LockAnswer(BaseModel):
    """`POST /v3/endpoints/{id}/lock`.

    The end of the lock (UTC, ISO 8601), and whether the endpoint was online when it was locked.
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
    """All error answers. `message` and `reason` are the same text (clients read either)."""

    code: str
    message: str
    reason: str
    status: Literal["Failed"] = "Failed"
    http_status_code: int
    request_id: str
    #: Dotted name of the invalid field in the request.
    field: str | None = None
