"""The inbox of the pool's thread, which polls descriptors."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator

#: Seconds for which the ids of settled tasks are collected.
_SETTLE_AFTER = 0.02


class PoolInbox:
    """Messages, and ids of tasks whose ends are on disk. No task waits for the latter.

    `put`, `settle` and `fileno` are for any thread, the others for the pool's thread.
    """

    def __init__(self) -> None:
        self._messages: deque[Callable[[], None]] = deque()
        self._settled: deque[str] = deque()
        #: Whether the thread was woken for these.
        self._will_settle = False
        #: Monotonic time at which these are due.
        self.settle_at = math.inf
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        #: Whether the thread was woken and has not called `clear` since.
        self._is_woken = False

    def fileno(self) -> int:
        """Return the descriptor to poll; then call `clear`."""
        return self._descriptor

    def put(self, message: Callable[[], None]) -> None:
        """Have the thread call a function."""
        self._messages.append(message)
        self._wake()

    def settle(self, task_ids: Collection[str]) -> None:
        """Have the thread settle tasks, in a moment."""
        self._settled.extend(task_ids)
        if not self._will_settle:
            self._will_settle = True
            self._wake()

    def _wake(self) -> None:
        with self._lock:
            if self._descriptor >= 0 and not self._is_woken:
                self._is_woken = True
                os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Make the descriptor unreadable until something new comes."""
        with self._lock:
            self._is_woken = False
            os.eventfd_read(self._descriptor)

    def messages(self) -> Iterator[Callable[[], None]]:
        """Remove and yield the messages."""
        while self._messages:
            yield self._messages.popleft()

    def settled(self, *, at_once: bool) -> list[str]:
        """Remove and return the ids of the settled tasks if they are due."""
        if self._will_settle and self.settle_at == math.inf:
            self.settle_at = time.monotonic() + _SETTLE_AFTER
        if not at_once and time.monotonic() < self.settle_at:
            return []
        self._will_settle, self.settle_at = False, math.inf  # before the next look
        return [self._settled.popleft() for _ in range(len(self._settled))]

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1
