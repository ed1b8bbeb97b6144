"""What the engine and a task's ranks leave for each other in a directory."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flux_endpoint.engine.task import Failure, TaskSettings, Value
from flux_endpoint.paths import write_private
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES
from flux_endpoint.protocol.states import ErrorCode

_TASK_FILE = "task.json"
_RANK_FILE = re.compile(r"rank-(0|[1-9]\d{0,9})\.json")
#: Bytes of a rank's end: JSON writes a byte of a value in six at most.
_LARGEST = 6 * MAX_PAYLOAD_BYTES + (1 << 20)


def write_task(
    directory: Path,
    task_id: str,
    buffer: str,
    result_serializers: list[str] | None,
    settings: TaskSettings,
) -> None:
    """Leave a task in `directory` for its ranks.

    Raises:
        OSError: it can't be written; names the file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    task = {
        "task_id": task_id,
        "buffer": buffer,
        "result_serializers": result_serializers,
        "settings": asdict(settings),
    }
    write_private(directory / _TASK_FILE, json.dumps(task), durable=False)


def read_task(directory: Path) -> dict[str, Any]:
    """Return what `write_task` was given."""
    task: dict[str, Any] = json.loads((directory / _TASK_FILE).read_text(encoding="utf-8"))
    return task


def rank_file(directory: Path, rank: int) -> Path:
    """Return where a rank leaves its end."""
    return directory / f"rank-{rank}.json"


def read_rank(directory: Path, rank: int) -> Value | Failure | None:
    """Return a rank's end, `None` if it has left none."""
    try:
        return _read(rank_file(directory, rank))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def ranks_that_ended(directory: Path) -> list[int]:
    """Return the ranks that have left an end, in their order; they may be far fewer than asked."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names alone
    except OSError:
        return []
    found = map(_RANK_FILE.fullmatch, names)
    return sorted(int(each[1]) for each in found if each)


def _read(path: Path) -> Value | Failure:
    # A task can leave there what it likes: a pipe that nobody writes to, or all of a disk.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no file")
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError("too large")
    end = json.loads(data)
    if "data" in end:
        return Value(_text(end["data"]))
    return Failure(ErrorCode(end["code"]), _text(end["text"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
