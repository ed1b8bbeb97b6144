"""Measure how well functions and MPI jobs together utilize an allocation.

    python benchmarks/utilization.py [--svg docs/utilization.svg]

The program starts a Flux instance with virtual nodes, cores and gpus: the tasks only sleep. An
endpoint's engine runs a stream of functions with one core each, MPI jobs on several nodes, and gpu
jobs. Each task records its begin and end, and Flux reports the number of allocated cores. The
program prints the share of core-seconds in which cores worked between the first start and the last
end, the use of the other core-seconds, and the ratio to the shortest possible time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flux_endpoint.engine import FluxEngine, FluxEngineConfig
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.functions import MPIFunction, ShellFunction, serialize_arguments
from flux_endpoint.protocol.messages import Result, unpack
from flux_endpoint.serialize import ComputeSerializer
from instance import instance
from mixed_load import KINDS, Task, make_load, shortest
from step_chart import Area, Line, draw
from step_functions import Steps, integral, level, steps

#: Time (s) between two samples of the allocated cores.
SAMPLE_PERIOD = 0.1
_serializer = ComputeSerializer()


@dataclass(frozen=True)
class Sample:
    """The engine's state at a time (s since the first submission)."""

    at: float
    allocated: int
    workers: int
    waiting_functions: int
    waiting_jobs: int


def nap(seconds: float) -> tuple[float, float]:
    """Sleep; the work of a function. Returns when it began and ended (s since the epoch)."""
    import time

    begun = time.time()
    time.sleep(seconds)
    return begun, time.time()


def command(seconds: float) -> str:
    """Return a command that sleeps and prints when it began and ended; the work of a rank."""
    now = "echo $FLUX_TASK_RANK $(date +%s.%N)"
    return f"sh -c '{now}; sleep {seconds:.3f}; {now}'"


class Run:
    """Submits a load to an engine and records its state.

    Args:
        tasks: the load, in the order of submission.
        engine: the engine.
    """

    def __init__(self, tasks: list[Task], engine: FluxEngine) -> None:
        self._engine = engine
        self._tasks = tasks
        self._by_id = {task.task_id: task for task in tasks}
        self._open = len(tasks)
        self._changed = threading.Condition()
        self._failures: list[str] = []
        self.samples: list[Sample] = []
        self.epoch = self.load = math.nan

    def run(self) -> None:
        """Run all tasks and wait for the last one."""
        self._engine.start(self._on_result, self._on_event)
        try:
            self.epoch = time.time()
            watcher = threading.Thread(target=self._watch)
            watcher.start()
            for task in self._tasks:
                time.sleep(max(0.0, self.epoch + task.release - time.time()))
                self._submit(task)
            with self._changed:
                self._changed.wait_for(lambda: self._open == 0)
            watcher.join()
            self.load = os.getloadavg()[0]
        finally:
            self._engine.stop(0)
        if self._failures:
            sys.exit("\n".join(["tasks failed:", *self._failures[:5]]))

    def _submit(self, task: Task) -> None:
        spec: dict[str, Any] | None = None
        if task.kind == "function":
            arguments = serialize_arguments(_serializer, nap, (task.seconds,), {})
            parts = [_serializer.serialize(nap), *arguments]
        else:
            spec = {"num_nodes": task.nodes, "ranks_per_node": task.ranks // task.nodes}
            spec["gpus_per_rank"] = 1 if task.kind == "gpu" else 0
            make = MPIFunction if task.kind == "mpi" else ShellFunction
            function = make(command(task.seconds))
            parts = [
                _serializer.serialize(function),
                *serialize_arguments(_serializer, function, (), {}),
            ]
        buffer = _serializer.pack_buffers(parts)
        self._engine.submit(EngineTask(task.task_id, str(uuid.UUID(int=1)), buffer, spec))

    def _on_result(self, result: EngineResult) -> None:
        message = unpack(result.body)
        assert isinstance(message, Result)
        task = self._by_id[result.task_id]
        if message.error_details is not None:
            self._failures.append(f"{task.kind}: {message.data}")
        else:
            value = _serializer.deserialize(message.data)
            task.work = [(a - self.epoch, b - self.epoch) for a, b in _intervals(value)]
            if len(task.work) != task.ranks:
                self._failures.append(
                    f"{task.kind}: {len(task.work)} of {task.ranks} ranks: {value}"
                )
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def _on_event(self, event: EngineEvent) -> None:
        task = self._by_id[event.task_id]
        if event.name == "alloc":
            task.allocated = event.timestamp - self.epoch
        elif event.name == "free":
            task.freed = event.timestamp - self.epoch

    def _watch(self) -> None:
        while self._open:
            status = self._engine.status()
            usage = status["usage"]
            if usage:
                sample = Sample(
                    time.time() - self.epoch,
                    usage["cores_allocated"],
                    status["total_workers"],
                    status["pending_tasks"],
                    status["waiting_jobs"],
                )
                self.samples.append(sample)
            time.sleep(SAMPLE_PERIOD)


def _intervals(value: Any) -> list[tuple[float, float]]:
    if isinstance(value, tuple):
        return [value]
    times: dict[str, list[float]] = {}
    for line in value.stdout.splitlines():
        rank, moment = line.split()
        times.setdefault(rank, []).append(float(moment))
    return [(min(both), max(both)) for both in times.values() if len(both) == 2]


@dataclass(frozen=True)
class Summary:
    """The results of a run, in seconds or core-seconds."""

    flux: str
    #: Load average of this machine in the last minute of the run.
    load: float
    nodes: int
    cores: int
    gpus: int
    begin: float
    end: float
    shortest: float
    work: dict[str, float]
    #: The use of the cores that did not work.
    workers_coming_or_going: float
    workers_without_function: float
    held_by_jobs: float
    free_while_some_wait: float
    free: float

    @property
    def available(self) -> float:
        return self.cores * (self.end - self.begin)

    @property
    def busy(self) -> float:
        return sum(self.work.values())

    @property
    def utilization(self) -> float:
        return self.busy / self.available


def summarize(run: Run, tasks: list[Task], options: argparse.Namespace) -> Summary:
    """Return the use of the core-seconds between the first start and the last end."""
    work = [interval for task in tasks for interval in task.work]
    begin, end = min(a for a, _ in work), max(b for _, b in work)
    cores = options.nodes * options.cores
    allocated = allocated_curve(run)
    jobs = [task for task in tasks if task.kind != "function"]
    held = integral(job_curve(jobs, end), begin, end)
    at_work = {
        kind: sum(b - a for task in tasks if task.kind == kind for a, b in task.work)
        for kind in KINDS
    }
    in_jobs = sum(value for kind, value in at_work.items() if kind != "function")
    all_allocated = integral(allocated, begin, end)
    in_service = integral([(s.at, float(s.workers)) for s in run.samples], begin, end)
    waiting = [
        (s.at, (cores - s.allocated) * float(s.waiting_functions + s.waiting_jobs > 0))
        for s in run.samples
    ]
    return Summary(
        flux=subprocess.run(["flux", "-V"], capture_output=True, text=True, check=True)
        .stdout.split("\n")[0]
        .split()[-1],
        load=run.load,
        nodes=options.nodes,
        cores=cores,
        gpus=options.nodes * options.gpus,
        begin=begin,
        end=end,
        shortest=shortest(tasks, cores),
        work=at_work,
        workers_coming_or_going=all_allocated - held - in_service,
        workers_without_function=in_service - at_work["function"],
        held_by_jobs=held - in_jobs,
        free_while_some_wait=integral(waiting, begin, end),
        free=cores * (end - begin) - all_allocated,
    )


def allocated_curve(run: Run) -> Steps:
    return [(sample.at, float(sample.allocated)) for sample in run.samples]


def job_curve(jobs: list[Task], end: float) -> Steps:
    """Return the number of cores that were allocated to jobs over time."""
    return steps(
        [
            (job.allocated, job.freed or end)
            for job in jobs
            if job.allocated is not None
            for _ in range(job.ranks)
        ]
    )


def report(summary: Summary, tasks: list[Task]) -> str:
    """Return the printed report."""
    lines = [
        (
            f"Flux {summary.flux}, {summary.nodes} nodes with {summary.cores} cores and "
            f"{summary.gpus} gpus in all (virtual; tasks sleep)"
        ),
        f"on one machine with {os.cpu_count()} cores, load average {summary.load:.0f}",
        "",
        f"{'':<10}{'tasks':>7}{'cores each':>12}{'core-seconds':>14}{'mean wait (s)':>15}",
    ]
    for kind, name in KINDS.items():
        own = [task for task in tasks if task.kind == kind]
        if not own:
            continue
        sizes = sorted({task.ranks for task in own})
        size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        wait = sum(min(a for a, _ in task.work) - task.release for task in own) / len(own)
        lines.append(f"{name:<10}{len(own):>7}{size:>12}{summary.work[kind]:>14.1f}{wait:>15.1f}")
    parts = {
        "at work": summary.busy,
        "with workers that started or ended": summary.workers_coming_or_going,
        "with workers that had no function": summary.workers_without_function,
        "with jobs that started or ended": summary.held_by_jobs,
        "free": summary.free,
        "  while something waited": summary.free_while_some_wait,
    }
    lines += [
        "",
        (
            f"{summary.available:.1f} core-seconds from the first start to the last end "
            f"({summary.end - summary.begin:.1f} s), of which cores were"
        ),
        *(
            f"  {name:<36}{value:>9.1f}{value / summary.available:>8.1%}"
            for name, value in parts.items()
        ),
        "",
        (
            f"the last end {summary.end:.1f} s after the first submission; no schedule ends before "
            f"{summary.shortest:.1f} s: {summary.end / summary.shortest:.2f} times"
        ),
    ]
    return "\n".join(lines)


def figure(summary: Summary, run: Run, tasks: list[Task]) -> str:
    """Return a chart of the cores over time, as SVG."""
    curves, below = [], [(0.0, 0.0)]
    for kind, name in KINDS.items():
        intervals = [interval for task in tasks if task.kind == kind for interval in task.work]
        if intervals:
            below = _sum(below, steps(intervals))
            curves.append(Area(f"at work: {name}", below))
    return draw(
        title=f"Cores at work, from the first start to the last end: {summary.utilization:.0%} "
        f"of {summary.cores}",
        areas=curves[::-1],  # the highest first, so that it does not cover the others
        line=Line("allocated", [*allocated_curve(run), (summary.end, 0.0)]),
        width=summary.end,
        height=summary.cores,
        x_label="seconds",
        y_label="cores",
    )


def _sum(one: Steps, other: Steps) -> Steps:
    moments = sorted({at for at, _ in (*one, *other)})
    return [(at, level(one, at) + level(other, at)) for at in moments]


def main() -> None:
    """Run one load; print the report and write the requested files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--cores", type=int, default=4, help="of each node")
    parser.add_argument("--gpus", type=int, default=1, help="of each node")
    parser.add_argument("--functions", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=8, help="MPI jobs on 1, 2, … nodes")
    parser.add_argument("--gpu-jobs", type=int, default=8)
    parser.add_argument("--scale", type=float, default=1.0, help="makes every task longer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="of the engine"
    )
    parser.add_argument("--svg", type=Path, help="write the figure there")
    parser.add_argument("--json", type=Path, help="write summary, tasks and samples there")
    options = parser.parse_args()
    engine_options = {
        name: json.loads(value) for name, value in (o.split("=", 1) for o in options.set)
    }
    tasks = make_load(options)
    with (
        tempfile.TemporaryDirectory() as directory,
        instance(options.nodes, options.cores, options.gpus) as uri,
    ):
        config = FluxEngineConfig(**engine_options)
        engine = FluxEngine(
            config, endpoint_id=str(uuid.UUID(int=1)), directory=Path(directory), uri=uri
        )
        run = Run(tasks, engine)
        run.run()
    summary = summarize(run, tasks, options)
    print(report(summary, tasks))
    if options.svg:
        options.svg.write_text(figure(summary, run, tasks), encoding="utf-8")
    if options.json:
        data = {
            "summary": {**asdict(summary), "utilization": summary.utilization},
            "tasks": [asdict(task) for task in tasks],
            "samples": [asdict(sample) for sample in run.samples],
        }
        options.json.write_text(json.dumps(data), encoding="utf-8")


if __name__ == "__main__":
    main()
