"""One rank of a Python function that runs on several.

Run as `python -m flux_endpoint.engine.jobs.rank DIR`.

Reads the task from DIR, runs it, and leaves what came of it there. The ranks find each other as the
ranks of any MPI program do: a function that uses `mpi4py` has all of them in `COMM_WORLD`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from flux_endpoint.engine.task import Failure, TaskRunner, TaskSettings, Value
from flux_endpoint.protocol.states import ErrorCode

TASK_FILE = "task.json"
#: Who says which rank we are: Flux, then what MPI launchers set.
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "FLUX_TASK_RANK")


def write_task(
    directory: Path,
    task_id: str,
    buffer: str,
    result_serializers: list[str] | None,
    settings: TaskSettings,
) -> None:
    """Leave a task in `directory` for its ranks."""
    directory.mkdir(parents=True, exist_ok=True)
    task = {
        "task_id": task_id,
        "buffer": buffer,
        "result_serializers": result_serializers,
        "settings": asdict(settings),
    }
    (directory / TASK_FILE).write_text(json.dumps(task), encoding="utf-8")


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


def own_rank() -> int:
    """Return this process's rank; 0 if nothing says otherwise."""
    named = (os.environ.get(name) for name in _RANK_VARIABLES)
    return next((int(rank) for rank in named if rank), 0)


def main() -> None:
    """Run this rank's part of the task."""
    directory = Path(sys.argv[1])
    task = json.loads((directory / TASK_FILE).read_text(encoding="utf-8"))
    rank = own_rank()
    runner = TaskRunner(TaskSettings(**task["settings"]))
    end = runner.run(task["task_id"], task["buffer"], task["result_serializers"])
    target = rank_file(directory, rank)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(end)), encoding="utf-8")
    partial.replace(target)
    if isinstance(end, Failure):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # not through MPI_Finalize, which waits for ranks that wait for this one


if __name__ == "__main__":
    main()
