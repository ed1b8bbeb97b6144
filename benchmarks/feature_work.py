"""The work of the contenders that have dependencies, retries or a cache, and its timing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from work import PATIENCE, Turn, refuse_wrong, typed

#: Number of attempts that fail before one succeeds.
FAILURES = 3

#: A function whose calls form a chain.
add_one = typed("add_one", "def add_one(value):\n    return value + 1\n")
#: A function that fails `FAILURES` times; the file that it is given counts its calls.
flaky = typed(
    "flaky",
    f"""
def flaky(path):
    with open(path, "a+") as file:
        file.write("x")
        file.seek(0)
        calls = len(file.read())
    if calls <= {FAILURES}:
        raise ConnectionError("on purpose")
    return calls
""",
)
#: A function whose result is remembered.
remembered = typed("remembered", "def remembered(value):\n    return value\n")

#: Submits a call of a function; its argument may be a future. Returns a future.
Submit = Callable[..., Any]


def measure(
    turn: Turn, *, chain: Submit | None, retry: Submit | None, cache: Submit | None
) -> None:
    """Measure all requested rows.

    Args:
        turn: the order.
        chain: submits a call whose argument may be a future; `None`: not measured.
        retry: submits a call with `FAILURES` retries, without a pause.
        cache: submits a call whose result is stored, or taken from the store.
    """
    if chain is not None and "chain" in turn.counts:
        _run_chain(chain, 4)
        count = turn.counts["chain"]
        begun = time.perf_counter()
        _run_chain(chain, count)
        turn.answer("chain", 1000 * (time.perf_counter() - begun) / count)
    if retry is not None:
        paths = (turn.directory / f"calls-{number}" for number in itertools.count())
        turn.p50(
            "retries",
            lambda _: _finish(retry(flaky, str(next(paths)))),
            lambda _, calls: bool(calls == FAILURES + 1),
        )
    if cache is not None:
        first = cache(remembered, 7)  # Dask keeps a result only as long as there is a future
        refuse_wrong(0, first.result(PATIENCE), lambda _, value: bool(value == 7))
        turn.p50(
            "cached", lambda _: _finish(cache(remembered, 7)), lambda _, value: bool(value == 7)
        )


def _run_chain(submit: Submit, count: int) -> None:
    future = submit(add_one, 0)
    for _ in range(count - 1):
        future = submit(add_one, future)
    refuse_wrong(count, future.result(PATIENCE), lambda number, value: bool(value == number))


def _finish(future: Any) -> Callable[[], Any]:
    return lambda: future.result(PATIENCE)
