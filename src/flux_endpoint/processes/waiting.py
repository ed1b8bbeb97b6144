"""Waits for one descriptor of any number: `select.select` only accepts numbers below 1024."""

from __future__ import annotations

import select
from typing import Protocol


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def is_readable(file: int | _HasDescriptor, timeout: float) -> bool:
    """Return whether `file` is readable, or at its end, within `timeout` seconds.

    Args:
        file: a descriptor or an object with one. A pidfd is readable once its process has ended.
        timeout: seconds; 0 or less checks without waiting.
    """
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout) * 1000))
