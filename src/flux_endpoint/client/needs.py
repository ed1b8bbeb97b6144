"""The futures that a task waits for: those among its arguments, and those of `after`."""

from __future__ import annotations

import inspect
import string
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flux_endpoint.functions import ShellFunction
from flux_endpoint.protocol.rest import MAX_NEEDS

if TYPE_CHECKING:
    from flux_endpoint.client.future import ComputeFuture

_IN_STEPS = "let tasks in between wait for, or combine, a part of them each"


@dataclass(frozen=True, slots=True)
class Needs:
    """Futures of the tasks that a task needs.

    Attributes:
        values: those whose results are arguments, in the order of their references.
        after: the others.
    """

    values: tuple[ComputeFuture, ...] = ()
    after: tuple[ComputeFuture, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.values or self.after)

    def __iter__(self) -> Iterator[ComputeFuture]:
        yield from self.values
        yield from self.after

    @property
    def are_submitted(self) -> bool:
        """Whether each task has its id, or will never have one."""
        return all(each.task_id is not None or each.done() for each in self)

    @property
    def never_submitted(self) -> ComputeFuture | None:
        """The first that has ended without a task."""
        return next((each for each in self if each.task_id is None and each.done()), None)

    def as_request(self) -> dict[str, Any]:
        """Return the ids, as the service takes them."""
        return {
            name: [each.task_id for each in futures]
            for name, futures in (("values", self.values), ("after", self.after))
            if futures
        }


NO_NEEDS = Needs()


class _Collecting(threading.local):
    found: list[ComputeFuture] | None = None


_collecting = _Collecting()


@contextmanager
def collected_inputs() -> Iterator[list[ComputeFuture]]:
    """Collect the futures that are serialized in this context, in the order of their references."""
    before, found = _collecting.found, list[Any]()
    _collecting.found = found
    try:
        yield found
    finally:
        _collecting.found = before


def reference_to(future: ComputeFuture) -> int:
    """Return the number that stands for a future in the arguments that are being serialized.

    Raises:
        TypeError: no arguments are being serialized.
        ValueError: these have too many futures.
    """
    found = _collecting.found
    if found is None:
        raise TypeError(
            "a future can be an argument of a task, anywhere in it, but it can't be pickled or "
            "copied elsewhere, e.g. with a function that refers to it: pass it as an argument"
        )
    for index, each in enumerate(found):
        if each is future:
            return index
    if len(found) == MAX_NEEDS:
        raise ValueError(f"more than {MAX_NEEDS} futures are in them: {_IN_STEPS}")
    found.append(future)
    return len(found) - 1


def take_after(
    fn: Callable[..., Any], kwargs: dict[str, Any], kind: type[ComputeFuture]
) -> Sequence[ComputeFuture]:
    """Remove `after=[future, …]` from the keyword arguments of a call, and return the futures.

    It stays an argument if the function has a parameter of that name, or if it is something else.

    Args:
        fn: the function.
        kwargs: the keyword arguments.
        kind: the class of futures.

    Raises:
        ValueError: there are too many futures.
    """
    after = kwargs.get("after")
    if not isinstance(after, list | tuple) or not after:
        return ()
    if not all(isinstance(each, kind) for each in after) or "after" in _parameters(fn):
        return ()
    if len(after) > MAX_NEEDS:
        raise ValueError(f"after= has {len(after)} futures, at most {MAX_NEEDS}: {_IN_STEPS}")
    del kwargs["after"]
    return after


def _parameters(fn: Callable[..., Any]) -> set[str]:
    if isinstance(fn, ShellFunction):
        fields = (name for _, name, _, _ in string.Formatter().parse(fn.cmd) if name)
        return {name.partition(".")[0].partition("[")[0] for name in fields}
    try:
        return set(inspect.signature(fn).parameters)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return set()
