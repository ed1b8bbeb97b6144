"""Results of other tasks as arguments of a task.

The client puts a reference in the place of each future among the arguments, and the service sends
the results along. A worker that reads the arguments finds the results in their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from flux_endpoint.errors import DeserializationError

_inputs: ContextVar[Sequence[Any]] = ContextVar("inputs", default=())


def task_input(index: int) -> Any:
    """Return one of the results that the current task takes; arguments refer to this function.

    Args:
        index: which of them, from 0.

    Raises:
        DeserializationError: the task was sent without it.
    """
    inputs = _inputs.get()
    if index >= len(inputs):
        raise DeserializationError(
            f"an argument is the result of another task, but {len(inputs)} results were sent "
            "along: the service may be older than the client"
        )
    return inputs[index]


@contextmanager
def task_inputs(values: Sequence[Any]) -> Iterator[None]:
    """Set the results that arguments, which are read in this context, refer to.

    Args:
        values: the results.
    """
    before = _inputs.set(values)
    try:
        yield
    finally:
        _inputs.reset(before)
