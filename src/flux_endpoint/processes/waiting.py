"""Wait for one descriptor, whatever its number: `select.select` takes none above 1,023."""

from __future__ import annotations

import select
from typing import Protocol


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def is_readable(file: int | _HasDescriptor, timeout: float) -> bool:
    """Return whether `file` can be read, or is at its end, within `timeout` seconds.

    Args:
        file: a descriptor or an object with one. A pidfd is readable when its process has ended.
        timeout: seconds; 0 or less looks and does not wait.
    """
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout) * 1000))
