"""Futures for people: in a notebook, and as they end, with a bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, as_completed
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

from flux_endpoint.notebook import bar, table
from flux_endpoint.protocol.duration import format_duration

if TYPE_CHECKING:
    from flux_endpoint.client.future import ComputeFuture

F = TypeVar("F", bound=Future[Any])

#: Seconds between two updates.
_TICK = 0.1
_WIDTH = 30
_ERASE = "\r\033[K"
#: Maximum length of a value in a table.
_SHOWN = 200


def future_table(future: ComputeFuture) -> str:
    """Return HTML: a future's task, its state, and its value or error."""
    value = error = None
    state = "running" if future.running() else "pending"
    if future.cancelled():
        state = "cancelled"
    elif future.done():
        failure = future.exception()
        state = "finished" if failure is None else "failed"
        if failure is None:
            value = repr(future.result())[:_SHOWN]
        else:
            lines = str(failure).strip().splitlines() or [""]
            error = f"{type(failure).__name__}: {lines[-1].strip()[:_SHOWN]}"
    rows = [
        ("state", state),
        ("task", future.task_id),
        ("endpoint", future.endpoint_id),
        ("value", value),
        ("error", error),
    ]
    return table(type(future).__name__, rows)


def progress(
    futures: Iterable[F], *, label: str = "tasks", file: TextIO | None = None
) -> Iterator[F]:
    """Yield each future as it ends, and show how many have ended.

    The bar is on standard error if that is a terminal, or in the output of a notebook's cell;
    otherwise there is none. It shows the number of failed tasks, the rate, and the time left.

    Args:
        futures: the futures, or a `TaskGroup`; each is yielded once.
        label: what they are.
        file: where the bar is written; by default standard error, or the notebook.

    Example:
        futures = [executor.submit(pow, 2, n) for n in range(1000)]
        results = [future.result() for future in progress(futures)]
    """
    group: Any = futures
    if hasattr(group, "as_completed"):  # a TaskGroup makes its futures as they end
        count, ended = len(group), cast("Iterator[F]", group.as_completed())
    else:
        waiting = set(futures)
        count, ended = len(waiting), cast("Iterator[F]", as_completed(waiting))
    show = _shower(label, count, file)
    if show is None:
        yield from ended
        return
    counts = _Counts(count)
    shown_at = 0.0
    try:
        show(counts, False)
        for future in ended:
            counts.add(future)
            now = time.monotonic()
            if now - shown_at >= _TICK:
                shown_at = now
                show(counts, False)
            yield future
    finally:
        show(counts, True)


class _Counts:
    def __init__(self, count: int) -> None:
        self.count = count
        self.done = 0
        self._failed = 0
        self._began = time.monotonic()

    def add(self, future: Future[Any]) -> None:
        """Count a future that is done."""
        self.done += 1
        self._failed += future.cancelled() or future.exception() is not None

    @property
    def note(self) -> str:
        """How many failed, the rate, and the time left or passed."""
        passed = time.monotonic() - self._began
        parts = [f"{self._failed} failed"] if self._failed else []
        if self.done and passed > 0:
            rate = self.done / passed
            parts.append(f"{rate:.3g}/s")
            if self.done < self.count:
                parts.append(f"{format_duration(round((self.count - self.done) / rate))} left")
        if self.done == self.count:
            parts.append(f"in {format_duration(round(passed, 1))}")
        return ", ".join(parts)


_Show = Callable[[_Counts, bool], None]


def _shower(label: str, count: int, file: TextIO | None) -> _Show | None:
    """Return the function that shows the counts; `None`: nobody would see them."""
    if file is None and (in_notebook := _notebook_display()) is not None:
        handle = in_notebook(bar(label, 0, count, ""))
        return lambda counts, _: handle(bar(label, counts.done, count, counts.note))
    stream = file or sys.stderr
    if not stream.isatty():
        return None

    def write(counts: _Counts, is_last: bool) -> None:
        filled = _WIDTH * counts.done // count if count else _WIDTH
        drawn = f"[{'#' * filled}{'-' * (_WIDTH - filled)}]"
        line = f"{_ERASE}{label} {drawn} {counts.done}/{count} {counts.note}"
        stream.write(line + "\n" * is_last)
        stream.flush()

    return write


def _notebook_display() -> Callable[[str], Callable[[str], None]] | None:
    """Return a function that shows HTML and returns one that replaces it; `None`: no notebook."""
    module: Any = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None

    def show(text: str) -> Callable[[str], None]:
        handle = module.display.display(module.display.HTML(text), display_id=True)
        return lambda newer: handle.update(module.display.HTML(newer))

    return show
