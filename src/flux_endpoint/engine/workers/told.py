"""What a worker tells its manager, held against what the manager has sent it.

Tasks run in the worker's process: each can write to the worker's connection whatever it likes. What
does not fit what the worker was sent is not true, and nothing else that comes this way can be
believed then. A task can so spoil its own end, and no other's but that of one which the same worker
has begun meanwhile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flux_endpoint.engine.workers.handle import WorkerHandle
from flux_endpoint.protocol.messages import VERSION_BYTE

#: Characters of a worker's reason to be replaced.
_LONGEST_REASON = 1000


class UntrueFrameError(ValueError):
    """A worker that does what it was made for would not have said that now."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """It has come across a task that was taken back from it."""


@dataclass(frozen=True, slots=True)
class Late:
    """It came to its first task when the time of that had passed."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Leaves:
    """It ends, between two tasks."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Its first task has ended, or the one before, which was told already."""

    task_id: str
    returncode: int | None


def told_by(
    worker: WorkerHandle, header: dict[str, Any], body: bytes
) -> Skipped | Late | Leaves | Ended:
    """Return what a worker says with a frame.

    Raises:
        UntrueFrameError: that can't be, as far as the manager knows.
    """
    match header:
        case {"skipped": str()} if worker.skipping > 0:
            return Skipped()
        case {"late": str(task_id)} if _is_first(worker, task_id):
            if "before" in worker.sent[task_id][0]:
                return Late(task_id)
        case {"leaves": str(reason)}:
            return Leaves(reason[:_LONGEST_REASON])
        case {"id": str(task_id), "returncode": None | int() as returncode}:
            if task_id == worker.ended or (
                _is_first(worker, task_id) and _is_result_of(task_id, body)
            ):
                return Ended(task_id, returncode)
    raise UntrueFrameError


def _is_first(worker: WorkerHandle, task_id: str) -> bool:
    return bool(worker.tasks) and worker.tasks[0] == task_id


def _is_result_of(task_id: str, body: bytes) -> bool:
    """Return whether `body` is a result, and of no other task: the service believes it."""
    try:
        message: Any = json.loads(str(body[1:], "ascii")) if body[:1] == VERSION_BYTE else None
        data = message["data"]
        is_result = message["message_type"] == "result" and isinstance(data["data"], str)
        return bool(is_result and data["task_id"] == task_id)
    except (ValueError, TypeError, LookupError, RecursionError):
        return False
