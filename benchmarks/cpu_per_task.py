"""Measure the CPU time that each program spends on a task, end to end.

    python benchmarks/cpu_per_task.py [--rounds 3] [no-op lone command megabyte]

The program starts a Flux instance of two cores, broker, service and endpoint; it is the client. For
each kind of work it prints a row with the CPU milliseconds per task of every program, and all of
them together: median over the rounds. Unlike rates, these are also of use while others use the
machine, to compare two versions that run in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from end_to_end_level import endpoint_id_of, running
from flux_endpoint import Executor, ShellFunction
from resident import processes_in
from work import COMMAND, MIB, PATIENCE, same

PROGRAMS = ("client", "service", "broker", "agent", "workers")
#: Seconds after the last result, for confirms and acknowledgements.
_AFTERWARDS = 0.7

Cpu = dict[str, float]
Submit = Callable[[int], Any]


def _program(process: psutil.Process, home: Path) -> str:
    """Return which of `PROGRAMS` a process belongs to; empty: none of them."""
    if process.pid == os.getpid():
        return "client"
    words = process.cmdline()
    if words[-2:] == ["service", "run"]:
        return "service"
    if any("beam" in Path(word).name for word in words[:1]):
        return "broker"
    if any("flux_endpoint.engine.workers" in word for word in words):
        return "workers"
    is_agent = any(str(home) in value for value in process.environ().values())
    return "agent" if is_agent and "flux_endpoint" in words else ""


def _spent(processes: dict[psutil.Process, str]) -> Cpu:
    """Return the CPU seconds so far of each program."""
    spent = dict.fromkeys(PROGRAMS, 0.0)
    for process, program in processes.items():
        try:
            times = process.cpu_times()
        except psutil.Error:  # it has ended
            continue
        spent[program] += times.user + times.system
    return spent


def _rows(executor: Executor) -> dict[str, tuple[int, bool, Submit]]:
    """Return by name of work: number of tasks, whether one at a time, and what submits one."""
    command, payload = ShellFunction(COMMAND), os.urandom(MIB)
    return {
        "no-op": (3000, False, lambda number: executor.submit(same, number)),
        "lone": (60, True, lambda number: executor.submit(same, number)),
        "command": (400, False, lambda _: executor.submit(command)),
        "megabyte": (40, False, lambda _: executor.submit(same, payload)),
    }


def _run(count: int, submit: Submit, *, one_at_a_time: bool) -> None:
    if one_at_a_time:
        for number in range(count):
            submit(number).result(PATIENCE)
        return
    for future in [submit(number) for number in range(count)]:
        future.result(PATIENCE)


def measure(names: list[str], rounds: int) -> Iterator[tuple[str, Cpu]]:
    """Yield each kind of work with the CPU milliseconds per task of each program."""
    with tempfile.TemporaryDirectory(prefix="cpu-", ignore_cleanup_errors=True) as name:
        python = Path(sys.executable)
        with running(Path(name), python) as (service, home):
            os.environ["FLUX_ENDPOINT_HOME"] = str(service.home)
            with Executor(endpoint_id_of(home, "lab")) as executor:
                rows = _rows(executor)
                for each in names:
                    count, alone, submit = rows[each]
                    _run(max(1, count // 10), submit, one_at_a_time=alone)
                    found: list[Cpu] = []
                    for _ in range(rounds):
                        known = {
                            process: program
                            for process in {*processes_in(Path(name)), psutil.Process()}
                            if (program := _program(process, home))
                        }
                        before = _spent(known)
                        _run(count, submit, one_at_a_time=alone)
                        time.sleep(_AFTERWARDS)
                        after = _spent(known)
                        found.append({p: 1000 * (after[p] - before[p]) / count for p in PROGRAMS})
                    yield each, {p: statistics.median(one[p] for one in found) for p in PROGRAMS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    kinds = ["no-op", "lone", "command", "megabyte"]
    parser.add_argument("work", nargs="*", help=f"of {', '.join(kinds)}; default: all")
    arguments = parser.parse_args()
    print(f"| work | {' | '.join(PROGRAMS)} | all |", f"|---|{'---|' * 6}", sep="\n")
    for name, cpu in measure(arguments.work or kinds, arguments.rounds):
        values = " | ".join(f"{cpu[program]:.3g}" for program in PROGRAMS)
        print(f"| {name} | {values} | {sum(cpu.values()):.3g} |", flush=True)


if __name__ == "__main__":
    main()
