"""Waits for conditions without a notification: a file, a log line, another process's counter."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def until(
    condition: Callable[[], Value], patience: float = 100.0, *, longest_pause: float = 0.2
) -> Value:
    """Call `condition` until its value is true, and return the value.

    The calls become less frequent, so that an expensive condition does not slow down the programs
    that it waits for.

    Args:
        condition: the condition.
        patience: the test fails after this time (s).
        longest_pause: between two calls (s); more for a condition that starts a program.
    """
    begin = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - begin
        assert waited < patience, f"it did not happen in {patience:g} s"
        time.sleep(min(longest_pause, max(0.01, waited * longest_pause / 4)))
    return value
