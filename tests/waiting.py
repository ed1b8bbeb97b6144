"""Waits for conditions without a notification: a file, a log line, another process's counter."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def until(condition: Callable[[], Value], patience: float = 100.0) -> Value:
    """Call `condition` until its value is true, and return the value.

    The calls become less frequent, so that an expensive condition does not slow down the programs
    that it waits for.

    Args:
        condition: the condition.
        patience: the test fails after this time (s).
    """
    begin = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - begin
        assert waited < patience, f"it did not happen in {patience:g} s"
        time.sleep(min(0.2, max(0.01, waited / 20)))
    return value
