"""Checks what a worker reports against what its manager has sent it.

Tasks run in the worker's process, so a task can write anything to the worker's connection. A report
that does not match the sent tasks is false, and nothing else on that connection can be trusted. A
task can thus forge only its own end, or that of a task that the same worker has begun meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_endpoint.engine.workers.handle import WorkerHandle
from flux_endpoint.engine.written_output import WrittenOutput
from flux_endpoint.protocol.envelope import (
    CUT,
    LARGE_TEXT,
    LITERAL,
    VERSION_BYTE,
    read_compact_json,
)

#: Longest reason for a worker's replacement, in characters.
_LONGEST_REASON = 1000
#: Bytes at both ends of a large message that are always parsed.
_ENDS = 4096


class FalseReportError(ValueError):
    """The frame does not match what the worker was sent."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """The worker has skipped a task that was taken back."""


@dataclass(frozen=True, slots=True)
class Late:
    """The worker came to its first task after the task's `start_before`."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Leaves:
    """The worker ends, between two tasks."""

    reason: str


@dataclass(frozen=True, slots=True)
class Writes:
    """The worker's first task is a command that runs for a while, and writes to these files."""

    task_id: str
    output: WrittenOutput


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """The worker's first task has ended, or the previous one, which was reported already.

    Attributes:
        task_id: the task.
        returncode: the command's, if the task was one.
        seconds: how long it took, as far as the worker says so.
        body: its result's message.
        streams: what the worker has read of the task's standard output and error; `None`: the
            manager is to read them.
    """

    task_id: str
    returncode: int | None
    seconds: float | None
    body: bytes
    streams: tuple[bytes, bytes] | None = (b"", b"")


def report_in(
    worker: WorkerHandle, header: dict[str, Any], body: bytes
) -> Skipped | Late | Leaves | Writes | TaskEnded:
    """Return the report in a frame.

    Raises:
        FalseReportError: the report does not match what the manager has sent.
    """
    match header:  # the usual report first
        case {"id": str(task_id), "returncode": None | int() as returncode}:
            body, streams = _divided(body, header.get("printed"))
            if task_id == worker.tasks.ended or (
                worker.tasks.is_first(task_id) and _is_result_of(task_id, body)
            ):
                found = None if header.get("unread") is True else streams
                return TaskEnded(task_id, returncode, _seconds_in(header), body, found)
        case {"skipped": str()} if worker.tasks.skipping > 0:
            return Skipped()
        case {"late": str(task_id)} if worker.tasks.is_first(task_id):
            if "before" in worker.tasks.message(task_id)[0]:
                return Late(task_id)
        case {"leaves": str(reason)}:
            return Leaves(reason[:_LONGEST_REASON])
        case {
            "writes": str(task_id),
            "paths": [str(out), str(error)],
            "starts": [int() as out_start, int() as error_start],
        } if worker.tasks.is_first(task_id) and min(out_start, error_start) >= 0:
            paths = (Path(out), Path(error))
            return Writes(task_id, WrittenOutput(paths, (out_start, error_start)))
    raise FalseReportError


def _divided(body: bytes, printed: object) -> tuple[bytes, tuple[bytes, bytes]]:
    """Return the result's message, and the output after it, whose two lengths are `printed`."""
    match printed:
        case None:
            return body, (b"", b"")
        case [int() as out, int() as error] if min(out, error) >= 0 and out + error <= len(body):
            end = len(body) - out - error
            return body[:end], (body[end : end + out], body[end + out :])
    raise FalseReportError


def _seconds_in(header: dict[str, Any]) -> float | None:
    seconds = header.get("seconds")
    return seconds if isinstance(seconds, float) and seconds >= 0 else None


def _is_result_of(task_id: str, body: bytes) -> bool:
    """Return whether `body` is a result of this very task: the service trusts the id in it."""
    middle = body[_ENDS:-_ENDS] if len(body) >= LARGE_TEXT else b'"'
    # Without quotes and escapes, the middle is within one text, and is valid there. Parsing a MiB
    # of it takes a millisecond. If it is not within a text, `CUT` makes the rest invalid.
    if not middle.translate(None, LITERAL) and (
        _says_so(task_id, b"".join((body[:_ENDS], CUT.encode(), body[-_ENDS:])))
    ):
        return True
    return _says_so(task_id, body)


def _says_so(task_id: str, body: bytes) -> bool:
    try:
        if body[:1] != VERSION_BYTE:
            return False
        message = read_compact_json(str(body[1:], "ascii"))
        data = message["data"]
        is_result = message["message_type"] == "result" and isinstance(data["data"], str)
        return bool(is_result and data["task_id"] == task_id)
    except (ValueError, TypeError, LookupError, RecursionError):
        return False
