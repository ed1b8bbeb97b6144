"""A semaphore over a number of items and their total size."""

import threading


class Room:
    """A semaphore over items and bytes. Safe to use from several threads.

    Args:
        most: maximum number of items.
        most_bytes: maximum total size in bytes. A single larger item is admitted alone.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._count = 0
        self._bytes = 0
        self._changed = threading.Condition()

    def acquire(self, size: int, timeout: float) -> bool:
        """Wait until there is room for an item, and take it.

        Args:
            size: bytes of the item.
            timeout: longest wait in seconds.

        Returns:
            Whether there was room within `timeout`.
        """
        with self._changed:
            found = self._changed.wait_for(lambda: self._fits(size), timeout)
            if found:
                self._count += 1
                self._bytes += size
            return found

    def release(self, size: int) -> None:
        """Give back the room of an item of `size` bytes."""
        with self._changed:
            self._count -= 1
            self._bytes -= size
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        if not self._count:
            return True
        return self._count < self._most and self._bytes + size <= self._most_bytes
