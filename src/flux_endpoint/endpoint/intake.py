"""Reads deliveries: tasks, failures for their owners, commands, and messages to dead-letter."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from flux_endpoint.amqp import Delivery
from flux_endpoint.endpoint.restrictions import RestrictionError, restricted
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.errors import InvalidMessageError
from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.logs import event
from flux_endpoint.protocol.envelope import VERSION_BYTE, read_json
from flux_endpoint.protocol.jobid import parse_jobid
from flux_endpoint.protocol.messages import (
    EndpointStop,
    ReportsWanted,
    Result,
    ResultErrorDetails,
    TaskKill,
    pack,
    unpack,
)
from flux_endpoint.protocol.queues import (
    ATTACH_HEADER,
    FUNCTION_ID_HEADER,
    FUNCTION_NAME_HEADER,
    RESOURCES_HEADER,
    RESULT_SERIALIZERS_HEADER,
    RUN_OPTIONS_HEADER,
    TASK_ID_HEADER,
)
from flux_endpoint.protocol.run_options import RunOptions, RunOptionsError, parse_run_options
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)

_COMMANDS = frozenset(kind.__name__ for kind in (ShellFunction, MPIFunction))
_CANONICAL_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class RefusedTask:
    """A message whose task is known but can't run; `result` tells its owner why."""

    task_id: str
    reason: str
    result: EngineResult


def read_task(
    body: bytes,
    headers: Mapping[str, Any],
    *,
    endpoint_id: str,
    allowed_functions: frozenset[str] | None,
    allowed_environment: Collection[str] = (),
    plain_programs: Collection[str] = (),
) -> EngineTask | RefusedTask:
    """Return the task in a message. Its identity comes from the headers alone.

    Args:
        body: the message body.
        headers: the message headers.
        endpoint_id: this endpoint's UUID.
        allowed_functions: the functions that may run here; `None`: all, with any arguments.
        allowed_environment: `variables` of `restricted`.
        plain_programs: `programs` of `restricted`.

    Raises:
        InvalidMessageError: the headers do not identify the task, so nobody can be notified.
    """
    task_id = _identity(headers, TASK_ID_HEADER)
    function_id = _identity(headers, FUNCTION_ID_HEADER)
    runs_function = ATTACH_HEADER not in headers
    if runs_function and allowed_functions is not None and function_id not in allowed_functions:
        text = f"function {function_id} is not allowed on endpoint {endpoint_id}"
        return refuse(task_id, ErrorCode.FUNCTION_NOT_ALLOWED, text, text)
    try:
        task = EngineTask(
            task_id,
            function_id,
            _buffer(body),
            _named(_resources(headers.get(RESOURCES_HEADER)), headers.get(FUNCTION_NAME_HEADER)),
            _serializers(headers.get(RESULT_SERIALIZERS_HEADER)),
            _attached_job(headers.get(ATTACH_HEADER)),
            options=_options(headers.get(RUN_OPTIONS_HEADER)),
        )
        if allowed_functions is None:
            return task
        return restricted(task, allowed_environment, plain_programs)
    except RestrictionError as error:
        return refuse(task_id, ErrorCode.TASK_NOT_ALLOWED, str(error), str(error))
    except InvalidMessageError as error:
        return refuse(
            task_id,
            ErrorCode.COULD_NOT_EXECUTE,
            f"the endpoint can't read the task: {error}",
            "The task's message is malformed; it was not run.",
        )


def refuse(task_id: str, code: ErrorCode, text: str, user_message: str) -> RefusedTask:
    """Return the refusal of a task; `text` becomes the text of the client's exception.

    Args:
        task_id: the task's id.
        code: the kind of failure.
        text: the text of the client's exception.
        user_message: a short message for the user.
    """
    error = ResultErrorDetails(code=code.value, user_message=user_message)
    result = Result(task_id=UUID(task_id), data=text, error_details=error, task_statuses=[])
    return RefusedTask(task_id, text, EngineResult(task_id, pack(result)))


def read_command(delivery: Delivery) -> TaskKill | EndpointStop | ReportsWanted | None:
    """Return the request in a delivery; dead-letter an invalid one and return `None`."""
    try:
        message = unpack(delivery.body)
        if isinstance(message, TaskKill | EndpointStop | ReportsWanted):
            return message
        reason = f"a {message.message_type} message is no command"
    except InvalidMessageError as error:
        reason = str(error)
    event(
        log,
        logging.ERROR,
        "command dead-lettered",
        message_id=delivery.message_id,
        reason=reason,
    )
    delivery.reject()
    return None


def cancelled_before_it_came(task_id: str) -> RefusedTask:
    """Return the end of a task that is not here yet; recorded, it keeps the task from starting."""
    text = "TaskCancelled: the task was ended on request before it was started"
    return refuse(task_id, ErrorCode.CANCELLED, text, "The task was ended on request.")


def _identity(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    if isinstance(value, str):
        if _CANONICAL_UUID.fullmatch(value):
            return value
        try:
            return str(UUID(value))
        except ValueError:
            pass
    what = "is missing" if value is None else f"is {str(value)[:100]!r}, not a UUID"
    raise InvalidMessageError(f"header {name} {what}")


def _buffer(body: bytes) -> str:
    if body[:1] != VERSION_BYTE:
        got = f"{body[0]:#04x}" if body else "nothing"
        raise InvalidMessageError(f"the body must begin with the version byte 0x01, not {got}")
    try:
        envelope = read_json(body, "task_buffer")
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"the body is not JSON: {error}") from None
    if not isinstance(envelope, dict) or envelope.get("message_type") != "task":
        kind = envelope.get("message_type") if isinstance(envelope, dict) else None
        raise InvalidMessageError(f"message_type must be 'task', not {str(kind)[:100]!r}")
    data = envelope.get("data")
    buffer = data.get("task_buffer") if isinstance(data, dict) else None
    if not isinstance(buffer, str):
        raise InvalidMessageError("data.task_buffer must be text")
    try:
        buffer.encode()
    except UnicodeEncodeError:  # a lone surrogate passes JSON but neither SQLite nor a socket
        raise InvalidMessageError("data.task_buffer is not valid Unicode") from None
    return buffer


def _resources(value: Any) -> dict[str, Any] | None:
    if value is None or value == "null":
        return None
    try:
        specification = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"header {RESOURCES_HEADER} is not JSON: {error}") from None
    if specification is None:
        return None
    if not isinstance(value, str) or not isinstance(specification, dict):
        raise InvalidMessageError(f"header {RESOURCES_HEADER} must be the JSON of an object")
    return specification


def _options(value: Any) -> RunOptions | None:
    if value is None:
        return None
    try:
        given = json.loads(value) if isinstance(value, str) else None
        if isinstance(given, dict):
            return parse_run_options(given)
    except RunOptionsError as error:
        raise InvalidMessageError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"header {RUN_OPTIONS_HEADER} is not JSON: {error}") from None
    raise InvalidMessageError(f"header {RUN_OPTIONS_HEADER} must be the JSON of an object")


def _named(specification: dict[str, Any] | None, name: object) -> dict[str, Any] | None:
    """Name the job after its function, unless the specification has a name for it.

    The name of an unnamed command function says nothing, so its program's name is used.
    """
    if not specification or specification.get("job_name") is not None or name in _COMMANDS:
        return specification
    return {**specification, "job_name": name} if isinstance(name, str) and name else specification


def _serializers(value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InvalidMessageError(f"header {RESULT_SERIALIZERS_HEADER} must be a list of text")
    return value or None


def _attached_job(value: Any) -> int | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) and value.isdecimal():
            return parse_jobid(value)
    except ValueError:
        pass
    raise InvalidMessageError(f"header {ATTACH_HEADER} must be a job id in decimal")
