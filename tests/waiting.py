"""Waiting for what nothing announces: a file, a log line, a counter of another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def until(condition: Callable[[], Value], patience: float = 100.0) -> Value:
    """Return what `condition` comes to, once that is true; fail after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"it did not happen in {patience:g} s"
        time.sleep(0.02)
    return value
