"""Runs one rank of a Python function that runs on several ranks.

Run as `python -m flux_endpoint.engine.jobs.rank DIR`.

Reads the task from DIR, runs it, and writes its value or failure there. The ranks connect like
those of any MPI program: with `mpi4py`, `COMM_WORLD` has all of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from flux_endpoint.engine.jobs.exchange import USAGE, rank_file, read_task
from flux_endpoint.engine.jobs.mpi_rank import end_others
from flux_endpoint.engine.task import Failure, TaskRunner, TaskSettings
from flux_endpoint.functions.sdk_shims import install_stand_ins
from flux_endpoint.usage import Meter

#: Variables with the rank of this process: Flux's, then those of MPI launchers.
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "FLUX_TASK_RANK")


def own_rank() -> int:
    """Return this process's rank; 0 if no variable has it."""
    named = (os.environ.get(name) for name in _RANK_VARIABLES)
    return next((int(rank) for rank in named if rank), 0)


def main() -> None:
    """Run the task on this rank."""
    directory = Path(sys.argv[1])
    task = read_task(directory)
    rank = own_rank()
    install_stand_ins()
    for stream in (sys.stdout, sys.stderr):
        # As on workers: printing never fails on a character, and each line is written at once.
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
    runner = TaskRunner(TaskSettings(**task["settings"]))
    meter = Meter()
    meter.begin()
    place = {"cwd": task["cwd"]}
    end = runner.run(task["task_id"], task["buffer"], task["result_serializers"], place)
    target = rank_file(directory, rank)
    partial = target.with_suffix(".partial")
    written = {**asdict(end), USAGE: asdict(meter.end())}
    partial.write_text(json.dumps(written), encoding="utf-8")
    partial.replace(target)
    if isinstance(end, Failure):
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)  # what C libraries have printed
        end_others(1)  # the job shell ends them only if this is the first rank to exit
        os._exit(1)  # skips MPI_Finalize, which would wait for ranks that wait for this one


if __name__ == "__main__":
    main()
