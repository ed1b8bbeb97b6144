"""Room for a number of things, and for a number of bytes of them."""

import threading


class Room:
    """Its methods are for any thread.

    Args:
        most: things that have room.
        most_bytes: bytes that they have together; a single larger one has room alone.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._count = 0
        self._bytes = 0
        self._changed = threading.Condition()

    def acquire(self, size: int, timeout: float) -> bool:
        """Take room for a thing of `size` bytes; return whether there is some in `timeout` s."""
        with self._changed:
            found = self._changed.wait_for(lambda: self._fits(size), timeout)
            if found:
                self._count += 1
                self._bytes += size
            return found

    def release(self, size: int) -> None:
        """Give the room for a thing back."""
        with self._changed:
            self._count -= 1
            self._bytes -= size
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        if not self._count:
            return True
        return self._count < self._most and self._bytes + size <= self._most_bytes
