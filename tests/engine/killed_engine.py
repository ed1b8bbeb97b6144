"""An engine as a process of its own, with a journal as an agent's, to be killed.

Usage: `killed_engine.py SETTINGS`: a JSON file with

- `kind`: "flux" or "local"; `directory`: the endpoint's; `config`: options of the engine;
- `tasks`: buffer and resource specification of each task, by id;
- `dies_at`: where the process kills itself, or null; see `DEATHS`;
- `orphan_timeout`, `patience`: other than the usual ones, or null; see `Endpoint.start`;
- `is_late`: whether managers report before the engine says that it has submitted all tasks.

The journal is a file for each result in `DIRECTORY/results`. What has none is submitted. The
process says `recovered` when it has submitted all of that, and ends when there are all results.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from engine_world import PATIENCE, World

from flux_endpoint.engine import FluxEngine
from flux_endpoint.engine.base import EngineResult
from flux_endpoint.engine.blocks.block import BlockLauncher
from flux_endpoint.engine.held import allocations
from flux_endpoint.engine.jobs.records import JobRecords
from flux_endpoint.engine.workers import launch, recovery
from flux_endpoint.engine.workers.handover import Handover
from flux_endpoint.engine.workers.pool import WorkerPool


def die(*_args: object, **_kwargs: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: type, name: str) -> None:
    setattr(owner, name, die)


def _after(owner: type, name: str) -> None:
    method = getattr(owner, name)

    def act(*args: object, **kwargs: object) -> None:
        method(*args, **kwargs)
        die()

    setattr(owner, name, act)


#: Moments between two steps of the engine's.
DEATHS: dict[str, Callable[[], None]] = {
    "a job is about to be submitted": lambda: _after(JobRecords, "begin"),
    "a job was submitted": lambda: _before(JobRecords, "identified"),
    "a job's id is noted": lambda: _after(JobRecords, "identified"),
    "a task gets an allocation": lambda: _after(JobRecords, "given"),
    "a block was submitted": lambda: _before(BlockLauncher, "record"),
    "a result comes": lambda: _before(Journalling, "_on_result"),
    "a result is recorded": lambda: _after(Journalling, "_record"),
}


def _recover_late() -> None:
    """Say that all tasks are submitted only after the turn of the pool with a manager's report."""
    reported, has_acted = threading.Event(), threading.Event()
    report, count, recovered = Handover.reported, WorkerPool._counters, FluxEngine.recovered

    def note_report(*args: Any) -> None:
        report(*args)
        reported.set()

    def note_turn(pool: WorkerPool) -> dict[str, Any]:  # called at the end of each turn
        if reported.is_set():
            has_acted.set()
        return count(pool)

    def recover(engine: FluxEngine) -> None:
        assert has_acted.wait(PATIENCE)
        recovered(engine)

    Handover.reported = note_report  # type: ignore[method-assign]
    WorkerPool._counters = note_turn  # type: ignore[method-assign]
    FluxEngine.recovered = recover  # type: ignore[method-assign]


class Journalling(World):
    """Records each result before the engine may forget it."""

    def _on_result(self, result: EngineResult) -> None:
        self._record(result)
        super()._on_result(result)

    def _record(self, result: EngineResult) -> None:
        journal = self.directory / "results"
        partial = journal / f".{result.task_id}"
        partial.write_bytes(result.body)
        partial.replace(journal / result.task_id)


def main(path: str) -> None:
    settings = json.loads(Path(path).read_text())
    # Tasks wait for an allocation however slow the machine is.
    allocations.PATIENCE = allocations.LONG = allocations.RECENT = PATIENCE
    if settings["dies_at"] is not None:
        DEATHS[settings["dies_at"]]()
    if settings["orphan_timeout"] is not None:
        launch._ORPHAN_TIMEOUT = settings["orphan_timeout"]
    if settings["patience"] is not None:
        recovery.CONNECT_TIMEOUT = settings["patience"]
    if settings["is_late"]:
        _recover_late()
    directory = Path(settings["directory"])
    journal = directory / "results"
    journal.mkdir(exist_ok=True)
    tasks = {
        task_id: tuple(task)
        for task_id, task in settings["tasks"].items()
        if not (journal / task_id).exists()
    }
    world = Journalling(settings["kind"], directory, recovers=tasks, **settings["config"])
    print("recovered", flush=True)
    world.ends(list(tasks), 120.0)
    world.stop()


if __name__ == "__main__":
    main(sys.argv[1])
