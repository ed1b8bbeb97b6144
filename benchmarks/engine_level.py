"""Measures engines alone: calls and results stay in the process that uses the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instance import instance
from levels import Answer, Comparison, Level, Row, Station
from peers import OURS, PEERS, environment, run_program
from work import WORKERS


@dataclass(frozen=True)
class Engine:
    """An engine that is measured.

    Args:
        key: its name in the data.
        title: its name in the tables.
        program: file name of its program in `contenders/`.
        rows: keys of the rows in which it is measured.
        python: the interpreter of the program.
        in_flux: whether it gets its own Flux instance.
        options: options of the program.
    """

    key: str
    title: str
    program: str
    rows: tuple[str, ...]
    python: Path = OURS
    in_flux: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def take_turn(self, counts: dict[str, int]) -> Iterator[Answer]:
        """Run the program."""
        with contextlib.ExitStack() as stack:
            more = {}
            if self.in_flux:
                more["FLUX_URI"] = stack.enter_context(instance(1, WORKERS))
            variables = environment(self.python, **more)
            for row, value in run_program(
                self.python, self.program, counts, self.options, variables
            ):
                yield Answer(row, self.key, value)


_FUNCTIONS = ("functions", "function-p50")
_JOBS = ("job-p50", "jobs")
_MPI = ("mpi-p50", "mpi")

ENGINES = [
    Engine(
        "flux",
        "ours, in Flux",
        "engine_ours.py",
        (*_FUNCTIONS, "commands", *_JOBS, *_MPI),
        in_flux=True,
        options={"executor": "flux"},
    ),
    Engine(
        "embedded",
        "ours, embedded executor",
        "engine_ours.py",
        (*_FUNCTIONS, "commands", *_JOBS, *_MPI),
        options={"executor": "local"},
    ),
    Engine(
        "htex",
        "GlobusComputeEngine (HTEX)",
        "engine_globus.py",
        (*_FUNCTIONS, "commands"),
        PEERS,
        options={"mpi": False},
    ),
    Engine("parsl", "Parsl (HTEX)", "engine_parsl.py", (*_FUNCTIONS, "commands"), PEERS),
    Engine(
        "executorlib",
        "executorlib in Flux, block allocation",
        "engine_executorlib.py",
        _FUNCTIONS,
        PEERS,
        in_flux=True,
        options={"block_allocation": True},
    ),
    Engine(
        "pool",
        "limit: ProcessPoolExecutor and dill",
        "limits.py",
        _FUNCTIONS,
        options={"kind": "pool"},
    ),
    Engine(
        "chunks",
        "limit: the same in chunks of 32",
        "limits.py",
        ("functions",),
        options={"kind": "chunks"},
    ),
    Engine(
        "bash",
        "limit: nothing but subprocess.run",
        "limits.py",
        ("commands",),
        options={"kind": "bash"},
    ),
    Engine(
        "bare",
        "bare FluxExecutor, poll_interval=0.001",
        "bare_flux.py",
        (*_JOBS, *_MPI),
        in_flux=True,
        options={"poll_interval": 0.001},
    ),
    Engine(
        "bare-default",
        "bare FluxExecutor as it is",
        "bare_flux.py",
        _JOBS,
        in_flux=True,
    ),
    Engine(
        "executorlib-jobs",
        "executorlib in Flux, a job per function",
        "engine_executorlib.py",
        _JOBS,
        PEERS,
        in_flux=True,
        options={"block_allocation": False},
    ),
    Engine("globus-mpi", "GlobusMPIEngine", "engine_globus.py", _MPI, PEERS, options={"mpi": True}),
]

ENGINE = Level(
    key="engine",
    title="Engines",
    rows=[
        Row("functions", "no-op functions", "/s", 5000, 500),
        Row("function-p50", "one function at a time, p50", "ms", 300, 40, "less"),
        Row("commands", 'ShellFunction("true")', "/s", 1000, 100),
        Row("job-p50", "one job with resources, p50", "ms", 20, 3, "less"),
        Row("jobs", "jobs with resources", "/s", 60, 6),
        Row("mpi-p50", "one 2-rank MPI command, p50", "ms", 20, 3, "less"),
        Row("mpi", "2-rank MPI commands on one node", "/s", 40, 4),
    ],
    contenders={engine.key: engine.title for engine in ENGINES},
    stations=[Station(engine.title, engine.rows, engine.take_turn) for engine in ENGINES],
    comparisons=[
        Comparison("functions", "flux", "htex", 10),
        Comparison("functions", "flux", "executorlib", 1.5),
        Comparison("functions", "flux", "parsl"),
        Comparison("functions", "flux", "pool", 1.4),
        Comparison("functions", "flux", "chunks", 0.8),
        Comparison("functions", "embedded", "pool"),
        Comparison("function-p50", "flux", "htex", 0.15),
        Comparison("function-p50", "flux", "executorlib"),
        Comparison("function-p50", "flux", "pool"),
        Comparison("commands", "flux", "bash", 0.8),
        Comparison("commands", "embedded", "bash", 0.8),
        Comparison("commands", "flux", "htex"),
        Comparison("job-p50", "flux", "bare", 1.15),
        Comparison("job-p50", "embedded", "bare", 0.5),
        Comparison("job-p50", "flux", "bare-default"),
        Comparison("job-p50", "flux", "executorlib-jobs"),
        Comparison("jobs", "flux", "bare", 0.97),
        Comparison("jobs", "flux", "executorlib-jobs"),
        Comparison("mpi-p50", "flux", "globus-mpi", 1),
        Comparison("mpi-p50", "embedded", "globus-mpi"),
        Comparison("mpi", "flux", "globus-mpi", 1),
        Comparison("mpi", "embedded", "globus-mpi"),
        Comparison("mpi", "flux", "bare"),
    ],
)
