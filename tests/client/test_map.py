"""`Executor.map`, with futures that the test resolves."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from typing import Any

import dill
import pytest

from flux_endpoint import ComputeFuture
from flux_endpoint.client.mapping import WINDOW, in_chunks, map_calls


class Calls:
    """Stands for `Executor.submit`; evaluates at once unless `held`."""

    def __init__(self, *, held: bool = False) -> None:
        self.futures: list[ComputeFuture] = []
        self.held = held

    def __call__(self, fn: Any, *args: Any, **kwargs: Any) -> ComputeFuture:
        future = ComputeFuture()
        self.futures.append(future)
        if not self.held:
            future.set_result(fn(*args, **kwargs))
        return future


def test_results_come_in_order() -> None:
    values = map_calls(Calls(), pow, ([2, 3, 4], [3, 2, 1]), {}, timeout=None, chunksize=1)
    assert list(values) == [8, 9, 4]


@pytest.mark.parametrize("chunksize", [1, 2])
def test_iterables_with_a_name_are_for_keyword_arguments(chunksize: int) -> None:
    named = {"base": itertools.repeat(2), "encoding": ["a", "b", "c"]}
    values = map_calls(Calls(), dict, ([{"x": 1}] * 9,), named, timeout=None, chunksize=chunksize)
    assert list(values) == [{"x": 1, "base": 2, "encoding": name} for name in "abc"]


@pytest.mark.parametrize("chunksize", [2, 3, 10])
def test_chunks_are_one_task_each(chunksize: int) -> None:
    calls = Calls()
    values = map_calls(calls, abs, (range(-7, 0),), {}, timeout=None, chunksize=chunksize)
    assert list(values) == [7, 6, 5, 4, 3, 2, 1]
    assert len(calls.futures) == -(-7 // chunksize)


def test_an_endless_iterable_is_read_as_results_are_consumed() -> None:
    calls = Calls()
    values = map_calls(calls, abs, (itertools.count(),), {}, timeout=None, chunksize=1)
    assert len(calls.futures) == WINDOW
    assert list(itertools.islice(values, 3)) == [0, 1, 2]
    assert WINDOW < len(calls.futures) <= WINDOW + 3


def test_the_timeout_counts_from_the_call_and_cancels_the_rest() -> None:
    calls = Calls(held=True)
    values = map_calls(calls, abs, ([1, 2],), {}, timeout=0.01, chunksize=1)
    with pytest.raises(TimeoutError):
        next(values)
    assert all(future.cancelled() for future in calls.futures)


def test_a_chunk_runs_without_this_package() -> None:
    assert in_chunks(functools.partial(divmod, 7))([((2,), {})]) == [(3, 1)]  # it has no name
    text = dill.dumps(in_chunks(divmod))
    code = (
        "import sys, dill; sys.modules['flux_endpoint'] = None;"
        f"print(dill.loads({text!r})([((7, 2), {{}}), ((9, 4), {{}})]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[(3, 1), (2, 1)]"
