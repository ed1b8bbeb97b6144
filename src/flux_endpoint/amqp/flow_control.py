"""How much may await the broker's confirm at a time."""

from __future__ import annotations

import threading


class FlowControl:
    """Blocks publishers while too much is unconfirmed.

    Args:
        messages: most messages.
        size: bytes of message bodies from which nobody is let in any more.
    """

    def __init__(self, messages: int, size: int) -> None:
        self._free_messages = messages
        self._free_size = size
        self._changed = threading.Condition()
        self._closed = False

    def enter(self, size: int, *, wait: bool) -> None:
        """Take room for one message, with `wait` as soon as there is some."""
        with self._changed:
            if wait:
                self._changed.wait_for(
                    lambda: (self._free_messages > 0 and self._free_size > 0) or self._closed
                )
            self._free_messages -= 1
            self._free_size -= size

    def leave(self, size: int) -> None:
        """Give back what one message took."""
        with self._changed:
            self._free_messages += 1
            self._free_size += size
            self._changed.notify()

    def close(self) -> None:
        """Block nobody any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
