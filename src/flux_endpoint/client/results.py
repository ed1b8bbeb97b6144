"""Resolves futures with results from messages or from the service's documents."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.skew import warn_of_skew
from flux_endpoint.errors import (
    DependencyFailed,
    DeserializationError,
    FluxEndpointError,
    InvalidMessageError,
    TaskCancelled,
    TaskError,
    TaskExecutionFailed,
)
from flux_endpoint.functions import OUR_RESULT
from flux_endpoint.protocol.envelope import JOBID, VERSION_BYTE, read_json
from flux_endpoint.protocol.exceptions import EXCEPTION, exception_from
from flux_endpoint.protocol.jobid import parse_jobid
from flux_endpoint.protocol.messages import Result, unpack
from flux_endpoint.protocol.states import FINAL_STATES, ErrorCode
from flux_endpoint.serialize import reading_as

# The service keeps only the text of an error. In these cases, the text begins with the code.
_CANCELLED = f"{ErrorCode.CANCELLED}:"
_DEPENDENCY_FAILED = f"{ErrorCode.DEPENDENCY_FAILED}:"
_CODES = {
    _CANCELLED: ErrorCode.CANCELLED,
    _DEPENDENCY_FAILED: ErrorCode.DEPENDENCY_FAILED,
}
_TASK = re.compile(r"\btask ([0-9a-f-]{36})\b")


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """The end of a task.

    Attributes:
        task_id: its id.
        value: its serialized result.
        error: text of its error; `None`: it succeeded.
        error_code: one of `ErrorCode`; `None`: unknown.
        completion_t: time of its end (s since the epoch, as text).
        details: details from the endpoint, e.g. its versions, and the id of the task's job.
    """

    task_id: str
    value: str = ""
    error: str | None = None
    error_code: str | None = None
    completion_t: str = "0"
    details: dict[str, Any] | None = None


def from_message(body: bytes, timestamp: int | None) -> TaskEnd:
    """Return the end of a task from a message of the result queue.

    Args:
        body: the message.
        timestamp: time of the message (s since the epoch), if known.

    Raises:
        InvalidMessageError: the message is not a result.
    """
    try:
        # For speed, the message is parsed with its model only if it is invalid, for the error.
        envelope = read_json(body, "data") if body[:1] == VERSION_BYTE else None
        data = envelope["data"]  # type: ignore[index]
        value, task_id, details = data["data"], data["task_id"], data.get("details")
        problem = data.get("error_details")
        failed = problem is not None
        good = isinstance(value, str) and isinstance(task_id, str)
        good = good and envelope["message_type"] == Result.message_type  # type: ignore[index]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        good = False
    if not good:
        message = unpack(body)
        raise InvalidMessageError(f"expected a result, got a {message.message_type} message")
    return TaskEnd(
        task_id=task_id,
        value="" if failed else value,
        error=value if failed else None,
        error_code=problem.get("code") if isinstance(problem, dict) else None,
        completion_t=str(timestamp or 0),
        details=details if isinstance(details, dict) else None,
    )


def from_document(document: dict[str, Any]) -> TaskEnd | None:
    """Return the end of a task from its document at the service.

    Args:
        document: the document, with `task_id`.

    Returns:
        The end; `None` if the task has not ended.
    """
    status = str(document.get("status", "")).lower()
    completion_t = document.get("completion_t")
    if status not in FINAL_STATES and not completion_t:
        return None
    result, details = document.get("result"), document.get("details")
    value, error = (result, None) if isinstance(result, str) else ("", "")
    if status != "success" or error is not None:
        error = str(
            document.get("exception")
            or document.get("reason")
            or f"the service has neither result nor error of this task (status '{status}')"
        )
    return TaskEnd(
        task_id=str(document.get("task_id", "")),
        value=value,
        error=error,
        error_code=_code_in(error or ""),
        completion_t=str(completion_t or 0),
        details=details if isinstance(details, dict) else None,
    )


def _code_in(error: str) -> ErrorCode | None:
    return next((code for prefix, code in _CODES.items() if error.startswith(prefix)), None)


def load(
    end: TaskEnd, deserialize: Any, exceptions: Mapping[str, type[Exception]] | None = None
) -> Any:
    """Return the value of a task that succeeded.

    Args:
        end: the task's end.
        deserialize: turns the text of the result into its value.
        exceptions: types that the cause of an error may have, besides Python's own.

    Raises:
        TaskExecutionFailed: the task failed.
        TaskCancelled: it was ended on request.
        DependencyFailed: a task that it needs failed.
        DeserializationError: its value can't be read here.
    """
    if end.error is not None:
        if end.error_code == ErrorCode.CANCELLED:
            raise TaskCancelled(end.error.removeprefix(_CANCELLED).strip())
        if end.error_code == ErrorCode.DEPENDENCY_FAILED:
            text = end.error.removeprefix(_DEPENDENCY_FAILED).strip()
            named = _TASK.search(text)
            raise DependencyFailed(text, named[1] if named else None)
        cause = exception_from((end.details or {}).get(EXCEPTION), exceptions)
        raise TaskExecutionFailed(end.error, end.completion_t, end.details) from cause
    try:
        with reading_as(OUR_RESULT):  # read an official endpoint's ShellResult as our class
            return deserialize(end.value)
    except Exception as error:
        raise DeserializationError(
            f"task {end.task_id} succeeded, but its result can't be read here: "
            f"{_text(error)}{_versions(end.details)}"
        ) from error


def resolve(future: ComputeFuture, end: TaskEnd) -> None:
    """Resolve a future with a task's value or error.

    Args:
        future: the task's future.
        end: the task's end.
    """
    future._error_code = end.error_code
    future._set_jobid(_jobid(end.details))
    warn_of_skew(end.details)
    try:
        value = load(end, future._load, future._exceptions)
    except (TaskError, DeserializationError) as error:
        future._try_exception(_remote(error) if future._raises_remote else error)
    except BaseException as error:  # noqa: BLE001 - loading a value may call sys.exit()
        future._try_exception(DeserializationError(f"task {end.task_id}: {error!r}"))
    else:
        future._try_result(value)


def _remote(error: FluxEndpointError) -> BaseException:
    """Return the exception that the task raised, with the endpoint's report as its cause."""
    remote = error.__cause__
    if not isinstance(error, TaskExecutionFailed) or remote is None:
        return error
    error.__cause__ = None  # else each would be the other's cause
    remote.__cause__ = error.with_traceback(None)
    return remote


def _jobid(details: dict[str, Any] | None) -> int | None:
    text = (details or {}).get(JOBID)
    with suppress(ValueError):
        return parse_jobid(text) if isinstance(text, str) and text.isdecimal() else None
    return None


def _text(error: Exception) -> str:
    named = isinstance(error, DeserializationError)
    return str(error) if named else f"{type(error).__name__}: {error}"


def _versions(details: dict[str, Any] | None) -> str:
    import dill  # noqa: PLC0415 - only needed for an error

    if not details or "python_version" not in details:
        return ""
    return (
        f"\nHere: Python {platform.python_version()}, dill {dill.__version__}; on the endpoint: "
        f"Python {details['python_version']}, dill {details.get('dill_version', 'unknown')}. "
        "Values travel safely between equal versions only; modules that define their classes must "
        "be installed on both sides"
    )
