"""Actions that other threads post to the connection's thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)


class WorkQueue:
    """Actions that any thread posts, and one thread runs in order.

    Args:
        wake: makes that thread call `run` soon; several posts cost one call.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._actions: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._woken = False
        self._closed = False
        self._ended = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def post(self, action: Callable[[], None]) -> None:
        """Run `action` on that thread; drop it after the end."""
        with self._lock:
            wake = self._append(action)
        if wake:
            self._wake()

    def post_if_open(self, action: Callable[[], None]) -> bool:
        """Run `action` before that of `close`; return `False` if it is too late for that."""
        with self._lock:
            if self._closed:
                return False
            wake = self._append(action)
        if wake:
            self._wake()
        return True

    def close(self, action: Callable[[], None]) -> bool:
        """Run `action` if this is the first call; return whether it is."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            wake = self._append(action)
        if wake:
            self._wake()
        return True

    def _append(self, action: Callable[[], None]) -> bool:
        if self._ended:
            return False
        self._actions.append(action)
        wake, self._woken = not self._woken, True
        return wake

    # On the thread that runs the actions

    def run(self) -> None:
        """Run the pending actions."""
        with self._lock:
            self._woken = False
        while self._actions:
            try:
                self._actions.popleft()()
            except Exception:
                log.exception("an action on the connection to the broker failed")

    def end(self) -> None:
        """Run the pending actions, and none after them."""
        with self._lock:
            self._closed = self._ended = True
        self.run()
