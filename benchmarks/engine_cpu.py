"""Measure the CPU time that each part of our engine spends on a task, without service and client.

    python benchmarks/engine_cpu.py [--rounds 3] [no-op lone command]

The engine runs here on the embedded executor, with two workers. For each kind of work the program
prints a row with the CPU milliseconds per task of every part, all of them together, and for
comparison `ProcessPoolExecutor` with 32 calls in each message, or nothing but `subprocess.run`:
median over the rounds. As with `cpu_per_task.py`, other programs on the machine disturb less than
they disturb rates.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import dill
import psutil

BENCHMARKS = Path(__file__).parent
sys.path.insert(0, str(BENCHMARKS / "contenders"))

from engine_ours import Engine  # noqa: E402
from limits import CHUNK, call_each, pack, run_commands  # noqa: E402

from flux_endpoint.functions import ShellFunction  # noqa: E402
from work import COMMAND, WORKERS, Submit, is_same, run, same, went_well  # noqa: E402

PARTS = ("submitter", "pool", "ZeroMQ", "manager", "workers", "commands")
#: Number of tasks of each kind of work.
COUNTS = {"no-op": 3000, "lone": 200, "command": 300}

Cpu = dict[str, float]


def _of_thread(thread: Path) -> float:
    """Return the CPU seconds of a thread (the kernel's `sched-stats`)."""
    return int((thread / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def _part(process: psutil.Process, thread: Path, managers: set[int]) -> str:
    if (thread / "comm").read_text(encoding="ascii").startswith("ZMQ"):
        return "ZeroMQ"
    if process.pid == os.getpid():
        pools = {t.native_id for t in threading.enumerate() if t.name == "worker-pool"}
        return "pool" if int(thread.name) in pools else "submitter"
    return "manager" if process.pid in managers else "workers"


def _spent() -> Cpu:
    """Return the CPU seconds so far of each part."""
    spent = dict.fromkeys(PARTS, 0.0)
    me = psutil.Process()
    mine = [p for p in me.children(recursive=True) if "workers.manager" in " ".join(p.cmdline())]
    pids = {process.pid for process in mine}
    managers = {process.pid for process in mine if process.ppid() not in pids}
    for process in [me, *mine]:
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            spent[_part(process, thread, managers)] += _of_thread(thread)
        if process.pid in pids - managers:
            times = process.cpu_times()
            spent["commands"] += times.children_user + times.children_system
    return spent


def _one_at_a_time(submit: Submit, count: int) -> None:
    for number in range(count):
        submit(number)()


def measure(names: list[str], rounds: int) -> Iterator[tuple[str, Cpu]]:
    """Yield each kind of work with the CPU milliseconds per task of each part of the engine."""
    with tempfile.TemporaryDirectory(prefix="cpu-", ignore_cleanup_errors=True) as name:
        engine = Engine("local", Path(name))
        command = ShellFunction(COMMAND)
        codes = {"no-op": engine.code(same), "command": engine.code(command)}

        def call(number: int) -> Callable[[], object]:
            return engine.submit(codes["no-op"], same, number)

        def shell(_: int) -> Callable[[], object]:
            return engine.submit(codes["command"], command)

        work: dict[str, Callable[[int], None]] = {
            "no-op": lambda count: run(call, is_same, count),
            "lone": lambda count: _one_at_a_time(call, count),
            "command": lambda count: run(shell, went_well, count),
        }
        try:
            for each in names:
                found = [_per_task(_spent, work[each], COUNTS[each]) for _ in range(rounds + 1)]
                yield each, _medians(found[1:])  # the first round is the warm-up
        finally:
            engine.stop()


def _per_task(spent: Callable[[], Cpu], do: Callable[[int], None], count: int) -> Cpu:
    before = spent()
    do(count)
    return {part: 1000 * (seconds - before[part]) / count for part, seconds in spent().items()}


def _medians(found: list[Cpu]) -> Cpu:
    return {part: statistics.median(each[part] for each in found) for part in found[0]}


def _with_children() -> Cpu:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"all": sum(each.ru_utime + each.ru_stime for each in used)}


def _in_chunks(count: int) -> None:
    with ProcessPoolExecutor(WORKERS) as pool:
        calls = [pack(same, number) for number in range(count)]
        chunks = [calls[first : first + CHUNK] for first in range(0, count, CHUNK)]
        values = [dill.loads(packed) for each in pool.map(call_each, chunks) for packed in each]
    if values != list(range(count)):
        raise ValueError("a task has a wrong value")


def limit(name: str, rounds: int) -> float:
    """Return the CPU milliseconds per task of a program that does nothing else."""
    do = run_commands if name == "command" else _in_chunks
    found = [_per_task(_with_children, do, COUNTS[name]) for _ in range(rounds + 1)]
    return _medians(found[1:])["all"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("work", nargs="*", help=f"of {', '.join(COUNTS)}; default: all")
    arguments = parser.parse_args()
    limits = {n: limit(n, arguments.rounds) for n in ("no-op", "command")}  # before any thread
    print(f"| work | {' | '.join(PARTS)} | all | limit |", f"|---|{'---|' * 8}", sep="\n")
    for name, cpu in measure(arguments.work or list(COUNTS), arguments.rounds):
        values = " | ".join(f"{cpu[part]:.3f}" for part in PARTS)
        least = f"{limits[name]:.3f}" if name in limits else ""
        print(f"| {name} | {values} | {sum(cpu.values()):.3f} | {least} |", flush=True)


if __name__ == "__main__":
    main()
