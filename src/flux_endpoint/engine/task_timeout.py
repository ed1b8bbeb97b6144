"""The walltime of Python functions: `GC_TASK_TIMEOUT` (seconds) in a worker's environment."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Iterator
from typing import Final

VARIABLE: Final = "GC_TASK_TIMEOUT"


def task_timeout() -> contextlib.AbstractContextManager[None]:
    """Return a context whose code gets `TimeoutError`, on the main thread, when its time is over.

    Without the variable, or with 0, there is no limit. A function that is blocked in a library's
    native code is interrupted when it returns to Python.

    Raises:
        ValueError: the variable is not a number of seconds.
    """
    text = os.environ.get(VARIABLE)
    seconds = _limit(text) if text else 0.0
    return _interrupting(seconds) if seconds else contextlib.nullcontext()


@contextlib.contextmanager
def _interrupting(seconds: float) -> Iterator[None]:
    def end(_signum: int, _frame: object) -> None:
        raise TimeoutError(f"longer than {seconds:g} s, which is the {VARIABLE} of this site")

    before = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _limit(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{VARIABLE} must be a number of seconds, not {text!r}")
    return max(0.0, seconds)
