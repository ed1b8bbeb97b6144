"""Bare process pools and subprocesses: upper limits for the speed of any engine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import dill

from work import COMMAND, PATIENCE, WORKERS, Finish, Turn, same

#: Number of calls that are sent to a process together.
CHUNK = 32


def call(packed: bytes) -> bytes:
    """Run a call in a process of the pool."""
    function, args = dill.loads(packed)
    return bytes(dill.dumps(function(*args)))


def call_each(chunk: list[bytes]) -> list[bytes]:
    """Run several calls in a process of the pool."""
    return [call(packed) for packed in chunk]


def run_commands(count: int) -> None:
    """Run commands, one after the other."""
    for _ in range(count):
        subprocess.run(["bash", "-c", COMMAND], check=True)


def pack(function: Callable[..., Any], *args: Any) -> bytes:
    return bytes(dill.dumps((function, args)))


def main() -> None:
    turn = Turn()
    with ProcessPoolExecutor(WORKERS) as pool:

        def one(function: Callable[..., Any], *args: Any) -> Finish:
            future = pool.submit(call, pack(function, *args))
            return lambda: dill.loads(future.result(PATIENCE))

        def in_chunks(count: int) -> None:
            futures = []
            for first in range(0, count, CHUNK):
                numbers = range(first, min(first + CHUNK, count))
                futures.append(pool.submit(call_each, [pack(same, n) for n in numbers]))
            values = [dill.loads(packed) for f in futures for packed in f.result(PATIENCE)]
            if values != list(range(count)):
                raise ValueError("a task has a wrong value")

        def commands(count: int) -> None:
            futures = [pool.submit(run_commands, count // WORKERS) for _ in range(WORKERS)]
            for future in futures:
                future.result(PATIENCE)

        kind = turn.options["kind"]
        if kind == "pool":
            turn.functions(one)
        elif kind == "chunks":
            turn.rate_of("functions", in_chunks)
        else:
            turn.rate_of("commands", commands)


if __name__ == "__main__":
    main()
