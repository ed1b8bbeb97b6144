"""Limits how much may await the broker's confirms."""

from __future__ import annotations

import threading


class FlowControl:
    """Blocks publishers while too much is unconfirmed.

    Args:
        messages: the most messages; `None`: publishers are never blocked.
        size: bytes of message bodies at which publishers are blocked.
    """

    def __init__(self, messages: int | None, size: int) -> None:
        self._free_messages = messages or 0
        self._free_size = size
        self._changed = threading.Condition()
        self._is_open = messages is None

    def enter(self, size: int, *, wait: bool) -> None:
        """Reserve room for one message; with `wait`, block until there is some."""
        with self._changed:
            if wait:
                self._changed.wait_for(
                    lambda: (self._free_messages > 0 and self._free_size > 0) or self._is_open
                )
            self._free_messages -= 1
            self._free_size -= size

    def leave(self, size: int) -> None:
        """Release the room of one message."""
        with self._changed:
            self._free_messages += 1
            self._free_size += size
            self._changed.notify()

    def unblock(self) -> None:
        """Unblock all publishers, for good."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()
