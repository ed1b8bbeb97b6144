"""Applications of the task performance suite TaPS, on its own executors or on a client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from taps.apps.cholesky import CholeskyApp
from taps.apps.configs.synthetic import WorkflowStructure
from taps.apps.mapreduce import MapreduceApp
from taps.apps.synthetic import SyntheticApp
from taps.engine import Engine
from taps.executor.dask import DaskDistributedConfig
from taps.executor.python import ProcessPoolConfig
from taps.executor.utils import FutureDependencyExecutor

from work import WORKERS, Turn

#: Side of a matrix tile, bytes of a synthetic task's argument and result, words in a file.
TILE, DATA, WORDS = 64, 1000, 20_000


def make_executor(turn: Turn) -> Executor:
    """Return the requested executor as an executor of TaPS."""
    kind, endpoint = turn.options["executor"], turn.options.get("endpoint_id")
    made: Executor
    if kind == "pool":
        made = ProcessPoolConfig(max_processes=WORKERS).get_executor()
    elif kind == "dask":
        made = DaskDistributedConfig(workers=WORKERS).get_executor()
    elif kind == "ours":
        from flux_endpoint import Executor as Ours

        made = FutureDependencyExecutor(Ours(endpoint))
    else:
        from globus_compute_sdk import Executor as Official

        fast: dict[str, Any] = {"api_burst_limit": 8, "api_burst_window_s": 1}
        made = FutureDependencyExecutor(Official(endpoint, **fast))
    return made


def synthetic(structure: WorkflowStructure, count: int) -> SyntheticApp:
    return SyntheticApp(structure, count, DATA, 0.0, bag_max_running=count)


def main() -> None:
    turn = Turn()
    os.chdir(turn.directory)  # some of them write into the working directory
    apps: dict[str, Callable[[int], Any]] = {
        "taps-bag": lambda n: synthetic(WorkflowStructure.BAG, n),
        "taps-sequential": lambda n: synthetic(WorkflowStructure.SEQUENTIAL, n),
        "taps-cholesky": lambda n: CholeskyApp(n * TILE, TILE),
        "taps-mapreduce": lambda n: MapreduceApp(
            turn.directory / "texts", generate=True, generated_files=n, generated_words=WORDS
        ),
    }
    with Engine(make_executor(turn)) as engine:
        synthetic(WorkflowStructure.BAG, 2 * WORKERS).run(engine, turn.directory)
        for row, make in apps.items():
            if turn.wants(row):
                app = make(turn.counts[row])
                begun = time.perf_counter()
                app.run(engine, turn.directory)
                turn.answer(row, time.perf_counter() - begun)
                app.close()


if __name__ == "__main__":
    main()
