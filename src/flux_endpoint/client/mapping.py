"""`Executor.map`: ordered, lazy, and optionally with several calls in each task."""

from __future__ import annotations

import builtins
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import FunctionType
from typing import Any

from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.registry import name_of

#: Number of tasks that are submitted before the first result is taken.
WINDOW = 4096

#: Positional and keyword arguments of a call.
_Call = tuple[tuple[Any, ...], dict[str, Any]]


def map_calls(
    submit: Callable[..., ComputeFuture],
    fn: Callable[..., Any],
    iterables: Sequence[Iterable[Any]],
    named: Mapping[str, Iterable[Any]],
    *,
    timeout: float | None,
    chunksize: int,
) -> Iterator[Any]:
    """Submit the first calls and return an iterator over all results; see `Executor.map`.

    Args:
        submit: submits a call of its first argument.
        fn: the function.
        iterables: one for each positional argument.
        named: one for each keyword argument.
        timeout: seconds from now; then waiting for a result raises `TimeoutError`.
        chunksize: number of calls in each task.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    calls = calls_of(iterables, named)
    if chunksize == 1:
        submissions = (submit(fn, *args, **kwargs) for args, kwargs in calls)
    else:
        run = in_chunks(fn)
        chunks = iter(lambda: list(islice(calls, chunksize)), [])
        submissions = (submit(run, chunk) for chunk in chunks)
    futures = deque(islice(submissions, WINDOW))
    return _results(futures, submissions, deadline, chunked=chunksize > 1)


def calls_of(
    iterables: Sequence[Iterable[Any]], named: Mapping[str, Iterable[Any]]
) -> Iterator[_Call]:
    """Yield the arguments of each call: one value of each iterable.

    Args:
        iterables: one for each positional argument; the shortest one ends the calls.
        named: one for each keyword argument.
    """
    count = len(iterables)
    for values in zip(*iterables, *named.values(), strict=False):
        yield values[:count], dict(zip(named, values[count:], strict=True))


def _results(
    futures: deque[ComputeFuture],
    submissions: Iterator[ComputeFuture],
    deadline: float | None,
    *,
    chunked: bool,
) -> Iterator[Any]:
    try:
        while futures:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            value = futures[0].result(wait)
            futures.popleft()
            futures.extend(islice(submissions, 1))
            if chunked:
                yield from value
            else:
                yield value
    finally:
        for future in futures:
            future.cancel()


def in_chunks(fn: Callable[..., Any]) -> Callable[[list[_Call]], list[Any]]:
    """Return a function that calls `fn` with each element of a list of arguments."""

    def run(calls):  # type: ignore[no-untyped-def]
        return [fn(*args, **kwargs) for args, kwargs in calls]

    # With globals of its own it is serialized by value, so workers don't need this package.
    return FunctionType(
        run.__code__, {"__builtins__": builtins}, name_of(fn), None, run.__closure__
    )
