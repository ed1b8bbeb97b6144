"""What the engine and a task's ranks leave for each other in a directory."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flux_endpoint.engine.task import Failure, TaskSettings, Value
from flux_endpoint.paths import write_private
from flux_endpoint.protocol.states import ErrorCode

_TASK_FILE = "task.json"


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
        end = json.loads(rank_file(directory, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if "data" in end:
        return Value(end["data"])
    return Failure(ErrorCode(end["code"]), end["text"])
