"""The files by which the engine and a task's ranks exchange the task and its values."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flux_endpoint.engine.task import Failure, TaskSettings, Value
from flux_endpoint.paths import write_private
from flux_endpoint.protocol.exceptions import MAX_NAMES
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.usage import Usage

#: Key in a rank's file for what it has used.
USAGE = "usage"
_TASK_FILE = "task.json"
_RANK_FILE = re.compile(r"rank-(0|[1-9]\d{0,9})\.json")
#: What reading a file raises that the task has written.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError)
#: The most seconds, and bytes, that a rank can have used.
_MOST = 1 << 53
#: Largest file of a rank in bytes: JSON needs at most six bytes for one byte of a value.
_LARGEST = 6 * MAX_PAYLOAD_BYTES + (1 << 20)


def write_task(  # noqa: PLR0917 - the parts of a task
    directory: Path,
    task_id: str,
    buffer: str,
    result_serializers: list[str] | None,
    settings: TaskSettings,
    cwd: str,
) -> None:
    """Write a task into `directory` for its ranks.

    Args:
        directory: the directory that the ranks share.
        task_id: the task's id.
        buffer: function and arguments, serialized and packed.
        result_serializers: strategies to try on the values, in order; `None`: the defaults.
        settings: how tasks run here.
        cwd: the working directory.

    Raises:
        OSError: it can't be written; the error names the file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    task = {
        "task_id": task_id,
        "buffer": buffer,
        "result_serializers": result_serializers,
        "settings": asdict(settings),
        "cwd": cwd,
    }
    write_private(directory / _TASK_FILE, json.dumps(task), durable=False)


def read_task(directory: Path) -> dict[str, Any]:
    """Return the arguments of `write_task`."""
    task: dict[str, Any] = json.loads((directory / _TASK_FILE).read_text(encoding="utf-8"))
    return task


def rank_file(directory: Path, rank: int) -> Path:
    """Return the path of the file in which a rank writes its value or failure."""
    return directory / f"rank-{rank}.json"


def read_rank(directory: Path, rank: int) -> Value | Failure | None:
    """Return a rank's value or failure; `None` if it has not written one."""
    try:
        return _end_in(_read(rank_file(directory, rank)))
    except _UNREADABLE:
        return None


def read_usage(directory: Path, rank: int) -> Usage | None:
    """Return what a rank has used; `None` if it has not written that."""
    try:
        return _usage_in(_read(rank_file(directory, rank)))
    except _UNREADABLE:
        return None


def ranks_that_ended(directory: Path) -> list[int]:
    """Return the ranks that have written a file, in order; these may be far fewer than asked."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names alone
    except OSError:
        return []
    found = map(_RANK_FILE.fullmatch, names)
    return sorted(int(each[1]) for each in found if each)


def _read(path: Path) -> Any:
    # The task may have put anything there: a named pipe without a writer, or a huge file.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no file")
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError("too large")
    return json.loads(data)


def _usage_in(end: Any) -> Usage:
    seconds, peak = end[USAGE]["cpu_time"], end[USAGE]["max_rss"]
    if not isinstance(seconds, float) or not 0 <= seconds < _MOST:
        raise ValueError("no time")
    if peak is not None and (not isinstance(peak, int) or not 0 <= peak < _MOST):
        raise ValueError("no size")
    return Usage(seconds, peak)


def _end_in(end: Any) -> Value | Failure:
    if "data" in end:
        return Value(_text(end["data"]))
    failure = Failure(ErrorCode(end["code"]), _text(end["text"]))
    return replace(failure, raised=_text(end.get("raised", ""))[:MAX_NAMES])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
