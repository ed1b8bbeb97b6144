"""Deadlines of one thread: nothing ticks, the thread waits until the next one."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable

#: Seconds; threads can't wait for arbitrarily long.
_LONGEST_WAIT = 86_400.0


class Timers:
    """A heap of things to do later. Owned by one thread."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Run `action` at the first `fire` that is `seconds` or more from now."""
        heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._order), action))

    def wait(self) -> float | None:
        """Return for how long to wait for the next, `None` if there is none."""
        if not self._heap:
            return None
        return min(max(0.0, self._heap[0][0] - time.monotonic()), _LONGEST_WAIT)

    def fire(self) -> None:
        """Run what is due."""
        while self._heap and self._heap[0][0] <= time.monotonic():
            heapq.heappop(self._heap)[2]()
