"""Who may start a task that was sent to a worker ahead of its turn: the worker, or nobody."""

from __future__ import annotations

import os


class Claims:
    """A counter that manager and worker share: so many of the tasks that were sent may be started.

    The worker takes one claim before each task and skips the task if there is none; the manager
    takes all that are left when it wants the tasks back. The kernel sees to it that nobody gets
    the same claim.

    Args:
        descriptor: the counter that somebody else made; by default a new one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = (
            os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            if descriptor is None
            else descriptor
        )

    def fileno(self) -> int:
        """Return the descriptor to hand on."""
        return self._descriptor

    def add(self) -> bool:
        """Allow one more task; return whether that was possible: not if a task has counted up."""
        try:
            os.eventfd_write(self._descriptor, 1)
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
        """Take what is left, `most` at the most; return how many that were."""
        count = 0
        while count < most and self.take():
            count += 1
        return count

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)
