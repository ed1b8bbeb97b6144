"""The message envelope and the messages that travel in it.

A body is the version byte `0x01` and then UTF-8 JSON `{"message_type": …, "data": {…}}`, byte for
byte what `globus_compute_common.messagepack` writes. Unknown fields are ignored with a warning.
"""

from __future__ import annotations

import json
import logging
from typing import Any, ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from flux_endpoint.errors import InvalidMessageError, UnrecognizedProtocolVersionError
from flux_endpoint.protocol.envelope import VERSION_BYTE
from flux_endpoint.protocol.fields import Nanoseconds, ReportedObject, Seconds
from flux_endpoint.protocol.resources import MAX_URGENCY
from flux_endpoint.protocol.states import ActorName, TaskState

log = logging.getLogger(__name__)

#: The most unknown fields that are logged, and characters of each: others choose their names.
_SHOWN = 60


class Message(BaseModel):
    """Base of all messages; `message_type` is their name on the wire."""

    message_type: ClassVar[str]


class ContainerImage(Message):
    """A container image (from older protocols, always absent today)."""

    message_type: ClassVar[str] = "containerimage"

    image_type: str
    location: str
    created_at: int
    modified_at: int
    build_status: str | None
    build_stderr: str | None


class Container(Message):
    """A container (from older protocols, always absent today)."""

    message_type: ClassVar[str] = "container"

    container_id: UUID
    name: str
    images: list[ContainerImage]


class Task(Message):
    """A task for an endpoint; `task_buffer` is the packed function, args and kwargs."""

    message_type: ClassVar[str] = "task"

    task_id: UUID
    container_id: UUID | None = None
    container: Container | None = None
    task_buffer: str


class TaskCancel(Message):
    """A request to end a task."""

    message_type: ClassVar[str] = "task_cancel"

    task_id: UUID


class TaskKill(Message):
    """A request to this project's endpoints: end a task, or send a signal to its processes.

    Without `signum` the task and its whole process tree are ended.
    """

    message_type: ClassVar[str] = "task_kill"

    task_id: UUID
    signum: int | None = None


class TaskUrgency(Message):
    """A request to this project's endpoints: change the urgency of a task that has not begun.

    It is sent to endpoints that know the option `hold`, see `protocol.run_options`.
    """

    message_type: ClassVar[str] = "task_urgency"

    task_id: UUID
    #: 0 holds the task; `None`: the urgency that it was submitted with.
    urgency: int | None = Field(default=None, ge=0, le=MAX_URGENCY)


class EndpointStop(Message):
    """A request to this project's endpoints: stop gracefully, as after SIGTERM."""

    message_type: ClassVar[str] = "endpoint_stop"

    endpoint_id: UUID


class ReportsWanted(Message):
    """A request to this project's endpoints: send status reports often, since somebody looks.

    It is sent to endpoints that have announced in their metadata that they understand it.
    """

    message_type: ClassVar[str] = "reports_wanted"

    endpoint_id: UUID
    #: For how long (s), from now on.
    seconds: float = Field(ge=0, allow_inf_nan=False)


class OutputWanted(Message):
    """A request to this project's endpoints: send what a running task prints, from now on.

    It is sent to endpoints that have announced in their metadata that they understand it.
    """

    message_type: ClassVar[str] = "output_wanted"

    task_id: UUID
    #: For how long (s), from now on.
    seconds: float = Field(ge=0, allow_inf_nan=False)
    #: Bytes of each stream that the service has, of this attempt.
    stdout: int = Field(default=0, ge=0, lt=2**62)
    stderr: int = Field(default=0, ge=0, lt=2**62)
    attempt: int = Field(default=1, ge=1)


class TaskEvent(BaseModel):
    """An event of a task's Flux job (RFC 21).

    `timestamp` is in seconds since the epoch; together with `name` it identifies duplicates.
    """

    task_id: UUID
    jobid: int | None = None
    name: str
    timestamp: Seconds
    context: ReportedObject = Field(default_factory=dict)


class TaskEvents(Message):
    """Job events of an endpoint's tasks; sent by this project's endpoints, on their own queues."""

    message_type: ClassVar[str] = "task_events"

    events: list[TaskEvent]


class TaskTransition(Message):
    """A task reached `state` at `timestamp` (integer nanoseconds since the epoch)."""

    message_type: ClassVar[str] = "task_transition"

    timestamp: Nanoseconds
    state: TaskState
    actor: ActorName


class ResultErrorDetails(BaseModel):
    """Why a task failed: a code for programs and a sentence for the user."""

    code: str
    user_message: str


class Result(Message):
    """A task's end; `data` is the serialized value, or an error text if `error_details` is set."""

    message_type: ClassVar[str] = "result"

    task_id: UUID
    data: str
    details: ReportedObject | None = None
    error_details: ResultErrorDetails | None = None
    task_statuses: list[TaskTransition] | None = None


class EPStatusReport(Message):
    """An endpoint's heartbeat."""

    message_type: ClassVar[str] = "ep_status_report"
    model_config = ConfigDict(populate_by_name=True)

    endpoint_id: UUID
    global_state: ReportedObject = Field(alias="ep_status_report")
    task_statuses: dict[str, list[TaskTransition]]


class ManagerStatusReport(Message):
    """Transitions of a manager's tasks."""

    message_type: ClassVar[str] = "manager_status_report"

    task_statuses: dict[str, list[TaskTransition]]


MESSAGES: dict[str, type[Message]] = {
    message.message_type: message
    for message in (
        Container,
        ContainerImage,
        EPStatusReport,
        EndpointStop,
        ManagerStatusReport,
        OutputWanted,
        ReportsWanted,
        Result,
        Task,
        TaskCancel,
        TaskEvents,
        TaskKill,
        TaskTransition,
        TaskUrgency,
    )
}


def pack(message: Message) -> bytes:
    """Return `message` as a message body."""
    try:
        data = message.model_dump_json()
    except PydanticSerializationError:  # lone surrogates in a program's output: escape as ASCII
        data = json.dumps(message.model_dump(), default=str)
    return VERSION_BYTE + f'{{"message_type":"{message.message_type}","data":{data}}}'.encode()


def read_json(body: bytes) -> Any:
    """Return the JSON of a message, without its version byte.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    text = body[1:]
    try:
        # Ten times as fast as `json.loads` for a text of megabytes.
        return from_json(text)
    except ValueError:  # it also refuses lone surrogates, and what nests deeply
        return json.loads(text)


def unpack(body: bytes) -> Message:
    """Return the message in `body`.

    Raises:
        UnrecognizedProtocolVersionError: the version byte is not `0x01`.
        InvalidMessageError: the body is otherwise invalid; the text says why.
    """
    if not body:
        raise InvalidMessageError("the message body is empty")
    if body[:1] != VERSION_BYTE:
        raise UnrecognizedProtocolVersionError(
            f"message has protocol version byte {body[0]}, this program reads version 1"
        )
    try:
        envelope = read_json(body)
    # ValueError covers bad UTF-8 and bad JSON; RecursionError is JSON that nests too deeply.
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"message body is not JSON: {error}") from error
    if not isinstance(envelope, dict) or not isinstance(envelope.get("data"), dict):
        raise InvalidMessageError("message envelope must be an object with an object in 'data'")
    kind = envelope.get("message_type")
    message_class = MESSAGES.get(kind) if isinstance(kind, str) else None
    if message_class is None:
        raise InvalidMessageError(
            f"message_type is {kind!r}, known are {', '.join(sorted(MESSAGES))}"
        )
    try:
        message = message_class.model_validate(envelope["data"])
    except ValidationError as error:
        raise InvalidMessageError(f"{kind} message: {_first_problem(error)}") from error
    except RecursionError as error:
        raise InvalidMessageError(f"{kind} message nests too deeply") from error
    _warn_of_unknown_fields(envelope, message_class)
    return message


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"field '{where}': {problem['msg']}"


def _warn_of_unknown_fields(envelope: dict[str, Any], message_class: type[Message]) -> None:
    known = {
        name for key, field in message_class.model_fields.items() for name in (key, field.alias)
    }
    unknown = (envelope.keys() - {"message_type", "data"}) | (envelope["data"].keys() - known)
    if unknown:
        log.warning(
            "%s message has unknown fields, ignored: %s",
            message_class.message_type,
            ", ".join(ascii(name)[:_SHOWN] for name in sorted(unknown)[:_SHOWN]),
        )
