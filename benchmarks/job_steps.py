"""Print when the steps of a job with a resource specification happen, and when the engine knows.

    python benchmarks/job_steps.py [--jobs 20]

The engine runs in a Flux instance of two cores. Jobs are submitted one at a time; the first one,
which waits until the idle workers have ended, is left out. The times are milliseconds from the
call, medians over the jobs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from pathlib import Path

BENCHMARKS = Path(__file__).parent
sys.path.insert(0, str(BENCHMARKS / "contenders"))

from flux_endpoint.engine import FluxEngine, FluxEngineConfig  # noqa: E402
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask  # noqa: E402
from flux_endpoint.functions import ShellFunction, serialize_arguments  # noqa: E402
from flux_endpoint.serialize import ComputeSerializer  # noqa: E402
from instance import instance  # noqa: E402
from peers import flux_path  # noqa: E402
from work import COMMAND, PATIENCE, WORKERS  # noqa: E402

STEPS = ("submit", "priority", "alloc", "start", "finish")
_ID = str(uuid.UUID(int=1))


class Steps:
    """The times of one job, in seconds since the epoch."""

    def __init__(self) -> None:
        self.happened: dict[str, float] = {}
        self.known: dict[str, float] = {}
        self.has_ended = threading.Event()

    def on_event(self, event: EngineEvent) -> None:
        self.happened[event.name] = event.timestamp
        self.known[event.name] = time.time()

    def on_result(self, _: EngineResult) -> None:
        self.known["result"] = time.time()
        self.has_ended.set()


def measure(directory: Path, count: int) -> dict[tuple[str, str], list[float]]:
    """Return the times (ms) of each step: when it happened, and when it was known."""
    jobs: dict[str, Steps] = defaultdict(Steps)
    config = FluxEngineConfig.model_validate({"executor": "flux", "max_workers": WORKERS})
    engine = FluxEngine(config, endpoint_id=_ID, directory=directory)
    engine.start(
        lambda result: jobs[result.task_id].on_result(result),
        lambda event: jobs[event.task_id].on_event(event),
    )
    engine.recovered()
    serializer, command = ComputeSerializer(), ShellFunction(COMMAND)
    arguments = serialize_arguments(serializer, command, (), {})
    buffer = serializer.pack_buffers([serializer.serialize(command), *arguments])
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    try:
        for number in range(count + 1):
            task_id = str(uuid.uuid4())
            called = time.time()
            engine.submit(EngineTask(task_id, _ID, buffer, {"num_ranks": 1}))
            if not jobs[task_id].has_ended.wait(PATIENCE):
                raise TimeoutError("a job has not ended")
            for kind, times in (
                ("happened", jobs[task_id].happened),
                ("known", jobs[task_id].known),
            ):
                for step, moment in list(times.items()):
                    if number > 0:
                        found[step, kind].append(1000 * (moment - called))
            engine.settle([task_id])
    finally:
        engine.stop(0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=20)
    count = parser.parse_args().jobs
    sys.path.insert(0, flux_path())
    with instance(1, WORKERS) as uri, tempfile.TemporaryDirectory(prefix="steps-") as name:
        os.environ["FLUX_URI"] = uri
        found = measure(Path(name), count)
    print("| step | happened | known |", "|---|---|---|", sep="\n")
    for step in (*STEPS, "result"):
        cells = (found.get((step, kind)) for kind in ("happened", "known"))
        shown = ("" if times is None else f"{statistics.median(times):.1f}" for times in cells)
        print(f"| {step} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
