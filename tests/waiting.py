"""Waiting for what nothing announces: a file, a log line, a counter of another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def until(condition: Callable[[], Value], patience: float = 100.0) -> Value:
    """Return what `condition` comes to, once that is true; fail after `patience` seconds.

    It asks less often the longer it waits, so that a condition that costs something does not slow
    down what it waits for.
    """
    begin = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - begin
        assert waited < patience, f"it did not happen in {patience:g} s"
        time.sleep(min(0.2, max(0.01, waited / 20)))
    return value
