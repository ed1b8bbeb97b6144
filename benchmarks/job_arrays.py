#!/usr/bin/env python3
"""Submits many equal jobs by the engine and by `flux bulksubmit`, each to an instance of its own.

The queue of each instance is stopped, so that only the submissions are measured. A value is the
time (s) from the first submission until Flux has given the last job its id.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

BENCHMARKS = Path(__file__).parent
sys.path.insert(0, str(BENCHMARKS / "contenders"))

from flux_endpoint.engine import FluxEngine, FluxEngineConfig  # noqa: E402
from flux_endpoint.engine.base import EngineEvent, EngineTask  # noqa: E402
from flux_endpoint.functions import ShellFunction, serialize_arguments  # noqa: E402
from flux_endpoint.serialize import ComputeSerializer  # noqa: E402
from instance import instance  # noqa: E402
from peers import flux_path  # noqa: E402
from work import COMMAND, WORKERS  # noqa: E402

_ID = str(uuid.UUID(int=1))
#: Seconds until all jobs must be submitted.
_PATIENCE = 600.0


def _stopped(uri: str) -> dict[str, str]:
    environment = {**os.environ, "FLUX_URI": uri}
    subprocess.run(["flux", "queue", "stop"], env=environment, check=True, capture_output=True)
    return environment


def by_flux(jobs: int) -> float:
    """Return the time of `flux bulksubmit`."""
    with instance(1, WORKERS) as uri:
        environment = _stopped(uri)
        begun = time.monotonic()
        command = ["flux", "bulksubmit", "-n1", "--quiet", COMMAND, ":::"]
        subprocess.run([*command, *map(str, range(jobs))], env=environment, check=True)
        return time.monotonic() - begun


def by_engine(jobs: int) -> tuple[float, float]:
    """Return the time of the engine, and the CPU time (ms) of its process per job."""
    with instance(1, WORKERS) as uri, tempfile.TemporaryDirectory() as directory:
        _stopped(uri)
        os.environ["FLUX_URI"] = uri
        submitted: set[str] = set()
        all_submitted = threading.Event()

        def on_event(event: EngineEvent) -> None:
            if event.name == "submit":
                submitted.add(event.task_id)
                if len(submitted) == jobs:
                    all_submitted.set()

        config = FluxEngineConfig.model_validate({"executor": "flux", "max_workers": WORKERS})
        engine = FluxEngine(config, endpoint_id=_ID, directory=Path(directory))
        engine.start(lambda _: None, on_event)
        engine.recovered()
        serializer, command = ComputeSerializer(), ShellFunction(COMMAND)
        arguments = serialize_arguments(serializer, command, (), {})
        buffer = serializer.pack_buffers([serializer.serialize(command), *arguments])
        spec = {"num_nodes": 1, "ranks_per_node": 1}
        try:
            begun, cpu = time.monotonic(), time.process_time()
            for _ in range(jobs):
                engine.submit(EngineTask(str(uuid.uuid4()), _ID, buffer, spec))
            if not all_submitted.wait(_PATIENCE):
                raise TimeoutError(f"{len(submitted)} of {jobs} jobs were submitted in time")
            return time.monotonic() - begun, 1000 * (time.process_time() - cpu) / jobs
        finally:
            engine.stop(0)


def main() -> None:
    """Measure in turn, and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sys.path.append(flux_path())
    found = [(by_flux(options.jobs), *by_engine(options.jobs)) for _ in range(options.rounds)]
    flux, engine, cpu = (statistics.median(values) for values in zip(*found, strict=True))
    ratio = statistics.median(flux / engine for flux, engine, _ in found)
    print(f"{options.jobs} jobs, medians of {options.rounds} rounds")
    print(f"flux bulksubmit  {flux:8.2f} s  {options.jobs / flux:8.0f} jobs/s")
    print(
        f"engine           {engine:8.2f} s  {options.jobs / engine:8.0f} jobs/s  {cpu:.2f} ms CPU"
    )
    print(f"ratio of the rates: {ratio:.2f}")


if __name__ == "__main__":
    main()
