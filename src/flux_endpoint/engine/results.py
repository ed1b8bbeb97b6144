"""Result messages, as workers, managers and engines write them."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from typing import Any

import dill

from flux_endpoint.engine.tail import StreamTail
from flux_endpoint.engine.task import Failure, Value
from flux_endpoint.protocol.compatible import COMPATIBLE_SDK
from flux_endpoint.protocol.envelope import (
    CPU_TIME,
    CUT,
    LARGE_TEXT,
    MAX_RSS,
    OUTPUT,
    OUTPUT_SIZES,
    RETURNCODE,
    VERSION_BYTE,
    compact_json,
    quoted,
)
from flux_endpoint.protocol.exceptions import EXCEPTION, RAISED
from flux_endpoint.protocol.states import ActorName, ErrorCode, TaskState
from flux_endpoint.usage import Usage

#: Longest text of a failure, in characters; the middle of a longer one is cut out.
_LONGEST_TEXT = 1 << 18

#: Short messages for users by kind of failure; the result's text has the details.
_USER_MESSAGES = {
    ErrorCode.REMOTE_EXECUTION: "The function raised an exception.",
    ErrorCode.COULD_NOT_EXECUTE: "The task could not be run.",
    ErrorCode.MAX_RESULT_SIZE: "The function's result is larger than the service accepts.",
    ErrorCode.CANCELLED: "The task was ended on request.",
    ErrorCode.WORKER_LOST: "The worker, node or job that ran the task was lost.",
    ErrorCode.ENGINE_REFUSED: "The endpoint's engine refused the task.",
}


def worker_details(endpoint_id: str) -> dict[str, Any]:
    """Return facts about the worker's Python for the client."""
    return {
        "os": platform.platform(),
        "python_version": platform.python_version(),
        "dill_version": dill.__version__,
        "globus_compute_sdk_version": COMPATIBLE_SDK,
        "endpoint_id": endpoint_id,
    }


def usage_details(usage: Usage | None) -> dict[str, Any]:
    """Return what a task has used, as far as it is known, as entries of its result's details."""
    if usage is None:
        return {}
    if usage.max_rss is None:
        return {CPU_TIME: round(usage.cpu_time, 6)}
    return {CPU_TIME: round(usage.cpu_time, 6), MAX_RSS: usage.max_rss}


def transition(
    state: TaskState, actor: ActorName = ActorName.WORKER, moment: float | None = None
) -> dict[str, Any]:
    """Return a transition to `state` at `moment` (seconds since the epoch); default: now."""
    nanoseconds = time.time_ns() if moment is None else int(moment * 1e9)
    return {"timestamp": nanoseconds, "state": state.value, "actor": actor.value}


def body_of(
    task_id: str,
    end: Value | Failure,
    details: dict[str, Any] | None,
    statuses: list[dict[str, Any]],
) -> bytes:
    """Return the message body of a task's end.

    Args:
        task_id: the task's id.
        end: its value, or its failure.
        details: facts about the worker; see `worker_details`.
        statuses: transitions of the task; see `transition`.
    """
    if isinstance(end, Value):
        if end.returncode is not None:
            details = {**(details or {}), RETURNCODE: end.returncode}
        return _body(task_id, end.data, None, details, statuses)
    if end.exception is not None:
        details = {**(details or {}), EXCEPTION: end.exception}
    if end.raised:
        details = {**(details or {}), RAISED: end.raised}
    return failure(task_id, end.code, end.text, details=details, statuses=statuses)


def output_details(tails: Iterable[StreamTail]) -> dict[str, Any]:
    """Return what a task has printed, on standard output and error, as entries for its details."""
    details: dict[str, Any] = {}
    for tail, (text, dropped) in zip(tails, OUTPUT, strict=True):
        if not tail.total or not tail.most:
            continue
        details[text] = shown = tail.text
        if tail.dropped:
            details[dropped] = tail.dropped
        if len(shown.encode()) != tail.total - tail.dropped:
            details[OUTPUT_SIZES[text]] = tail.total
    return details


def with_output(body: bytes, printed: dict[str, Any]) -> bytes:
    """Return the message of a worker's result with what the task has printed.

    Args:
        body: a valid message with details, as `body_of` writes it.
        printed: entries for its details.
    """
    if not printed:
        return body
    # Within a text of the message each quote has a backslash before it: this can only be a key.
    head, key, rest = body.partition(b',"details":{')
    if not key:
        return body
    comma = b"" if rest.lstrip()[:1] == b"}" else b","
    return b"".join((head, key, compact_json(printed)[1:-1], comma, rest))


def failure(
    task_id: str,
    code: ErrorCode,
    text: str,
    *,
    details: dict[str, Any] | None = None,
    statuses: list[dict[str, Any]] | None = None,
) -> bytes:
    """Return the body of a failed result; `text` becomes the text of the client's exception.

    Args:
        task_id: the task's id.
        code: the kind of failure.
        text: the text of the client's exception.
        details: facts about the worker; default: none.
        statuses: transitions of the task; default: none.
    """
    error = {"code": code.value, "user_message": _USER_MESSAGES.get(code, "The task failed.")}
    return _body(task_id, _shortened(text), error, details, statuses or [])


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"


def _body(
    task_id: str,
    data: str,
    error: dict[str, str] | None,
    details: dict[str, Any] | None,
    statuses: list[dict[str, Any]],
) -> bytes:
    return packed(
        {
            "task_id": task_id,
            "data": data,
            "details": details,
            "error_details": error,
            "task_statuses": statuses,
        }
    )


def packed(fields: dict[str, Any]) -> bytes:
    """Return the body of a result message with these fields."""
    data = fields["data"]
    shown = fields if len(data) < LARGE_TEXT else {**fields, "data": CUT}
    body = VERSION_BYTE + compact_json({"message_type": "result", "data": shown})
    if shown is fields:
        return body
    head, _, rest = body.partition(compact_json(CUT))
    return b"".join((head, quoted(data), rest))
