"""What a type checker finds in a program: `make check` runs it on this file, nobody runs the file.

An error that is expected has the comment `type: ignore` with its code; where mypy finds no such
error, it reports that comment.
"""

from __future__ import annotations

from typing import assert_type

from flux_endpoint import ComputeFuture, Executor, MPIFunction, ShellFunction, value_of
from flux_endpoint.data import SharedDirectory


def scale(values: list[float], factor: float = 1.0) -> list[float]:
    return [value * factor for value in values]


def report(title: str, *, values: list[float]) -> str:
    return f"{title}: {values}"


def right(executor: Executor) -> None:
    scaled = executor.submit(scale, [1.0, 2.0], factor=2.0)
    assert_type(scaled, ComputeFuture[list[float]])
    assert_type(scaled.result(), list[float])
    text = executor.submit(report, "all", values=value_of(scaled))
    assert_type(text.result(10), str)
    late = executor.submit(report, "late", values=[], after=[scaled, text])
    assert_type(late.result(), str)
    stored = SharedDirectory("/store", lifetime="1d").put([1.0])
    assert_type(stored.get(), list[float])
    executor.submit(report, "stored", values=value_of(stored))
    print(executor.submit(ShellFunction("echo {x}"), x=1).result().stdout)
    print(executor.submit(MPIFunction("hostname")).result().returncode)
    print(executor.using(num_nodes=2).submit(scale, [1.0]).result()[0][0])
    executor.using(num_nodes=2).submit(scale, [1.0], after=[late])


async def awaited(executor: Executor) -> None:
    assert_type(await executor.submit(report, "all", values=[]), str)


def wrong(executor: Executor) -> None:
    executor.submit(scale, "1, 2")  # type: ignore[call-overload]
    executor.submit(scale, [1.0], factr=2.0)  # type: ignore[call-arg]
    executor.submit(report, "all")  # type: ignore[call-overload]
    executor.submit(report, "all", values=executor.submit(scale, [1.0]))  # type: ignore[arg-type]
    executor.using(num_nodes=2).submit(scale, 3)  # type: ignore[call-overload]
    number: int = executor.submit(report, "all", values=[]).result()  # type: ignore[assignment]
    print(number)
