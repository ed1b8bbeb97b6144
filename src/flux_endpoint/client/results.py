"""From a result, however it arrived, to a resolved future."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.skew import warn_of_skew
from flux_endpoint.errors import (
    DeserializationError,
    InvalidMessageError,
    TaskCancelled,
    TaskError,
    TaskExecutionFailed,
)
from flux_endpoint.functions import OUR_RESULT
from flux_endpoint.protocol.envelope import JOBID, VERSION_BYTE
from flux_endpoint.protocol.jobid import parse_jobid
from flux_endpoint.protocol.messages import Result, unpack
from flux_endpoint.protocol.states import FINAL_STATES, ErrorCode
from flux_endpoint.serialize import reading_as

# What the service keeps of an error is its text, with the code before it for this one.
_CANCELLED = f"{ErrorCode.CANCELLED}:"


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """How a task ended: `value` is serialized; `error` is a text, `None` if there is none.

    `error_code` is one of `ErrorCode`, or `None` where it is not known.
    """

    task_id: str
    value: str = ""
    error: str | None = None
    error_code: str | None = None
    completion_t: str = "0"
    details: dict[str, Any] | None = None


def from_message(body: bytes, timestamp: int | None) -> TaskEnd:
    """Return what a message of the result queue says.

    Raises:
        InvalidMessageError: the body is not a result.
    """
    try:
        # Once per task: no model is built unless something is wrong and has to be explained.
        envelope = json.loads(body[1:]) if body[:1] == VERSION_BYTE else None
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
    """Return what the service's task document says, `None` while the task has not ended."""
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
        error_code=ErrorCode.CANCELLED if (error or "").startswith(_CANCELLED) else None,
        completion_t=str(completion_t or 0),
        details=details if isinstance(details, dict) else None,
    )


def load(end: TaskEnd, deserialize: Any) -> Any:
    """Return the value of a task that succeeded.

    Raises:
        TaskExecutionFailed: it did not.
        TaskCancelled: it was ended on request.
        DeserializationError: its value can't be read here.
    """
    if end.error is not None:
        if end.error_code == ErrorCode.CANCELLED:
            raise TaskCancelled(end.error.removeprefix(_CANCELLED).strip())
        raise TaskExecutionFailed(end.error, end.completion_t, end.details)
    try:
        with reading_as(OUR_RESULT):  # an official endpoint's ShellResult is one of ours here
            return deserialize(end.value)
    except Exception as error:
        raise DeserializationError(
            f"task {end.task_id} succeeded, but its result can't be read here: "
            f"{_text(error)}{_versions(end.details)}"
        ) from error


def resolve(future: ComputeFuture, end: TaskEnd) -> None:
    """Give `future` the value or the error in `end`."""
    future._error_code = end.error_code
    future._tell_jobid(_jobid(end.details))
    warn_of_skew(end.details)
    try:
        value = load(end, future._load)
    except (TaskError, DeserializationError) as error:
        future._try_exception(error)
    except BaseException as error:  # noqa: BLE001 - a value whose loading calls sys.exit()
        future._try_exception(DeserializationError(f"task {end.task_id}: {error!r}"))
    else:
        future._try_result(value)


def _jobid(details: dict[str, Any] | None) -> int | None:
    told = (details or {}).get(JOBID)
    with suppress(ValueError):
        return parse_jobid(told) if isinstance(told, str) and told.isdecimal() else None
    return None


def _text(error: Exception) -> str:
    named = isinstance(error, DeserializationError)
    return str(error) if named else f"{type(error).__name__}: {error}"


def _versions(details: dict[str, Any] | None) -> str:
    import dill  # noqa: PLC0415 - only to explain

    if not details or "python_version" not in details:
        return ""
    return (
        f"\nHere: Python {platform.python_version()}, dill {dill.__version__}; on the endpoint: "
        f"Python {details['python_version']}, dill {details.get('dill_version', 'unknown')}. "
        "Values travel safely between equal versions only; modules that define their classes must "
        "be installed on both sides"
    )
