"""Decides whether the worker or its manager gets a task that was sent ahead."""

from __future__ import annotations

import os


class Claims:
    """A counter shared by manager and worker: how many of the sent tasks may still start.

    The worker takes one claim before each task, and skips the task if there is none. The manager
    takes all remaining claims when it wants tasks back. The kernel makes each claim go to only one
    of them.

    Args:
        descriptor: an existing counter; by default a new one is created.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = (
            os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            if descriptor is None
            else descriptor
        )

    def fileno(self) -> int:
        """Return the descriptor, for passing it on."""
        return self._descriptor

    def add(self, count: int) -> bool:
        """Allow `count` more tasks; return False if a task has raised the counter too far."""
        try:
            os.eventfd_write(self._descriptor, count)
        except BlockingIOError:
            return False
        return True

    def take(self) -> bool:
        """Take one claim; return whether there was one."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return False
        return True

    def take_all(self, most: int) -> int:
        """Take the remaining claims, at most `most`; return their number."""
        count = 0
        while count < most and self.take():
            count += 1
        return count

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)
