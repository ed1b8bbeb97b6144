"""Events per second over the last minutes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

#: Windows of the reported rates in seconds, by name.
WINDOWS = {"1m": 60.0, "5m": 300.0, "15m": 900.0}
#: Seconds per bucket.
_BUCKET = 5.0


class RateMeter:
    """Counts events in buckets of a few seconds; belongs to one thread.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        #: Number of each bucket, and its count.
        self._buckets: deque[list[int]] = deque()
        #: All events since the beginning.
        self.total = 0

    def add(self, count: int) -> None:
        """Count `count` events that happened now."""
        if not count:
            return
        self.total += count
        number = int(self._clock() // _BUCKET)
        if self._buckets and self._buckets[-1][0] == number:
            self._buckets[-1][1] += count
        else:
            self._buckets.append([number, count])
            oldest = number - int(max(WINDOWS.values()) // _BUCKET)
            while self._buckets[0][0] < oldest:
                self._buckets.popleft()

    def rates(self) -> dict[str, float]:
        """Return events per second over each of `WINDOWS`, or since the beginning if shorter."""
        now = self._clock()
        rates = {}
        for name, window in WINDOWS.items():
            first = int((now - window) // _BUCKET) + 1
            counted = sum(count for number, count in self._buckets if number >= first)
            # From the start of the first counted bucket.
            seconds = now - max(first * _BUCKET, self._begun)
            rates[name] = round(counted / max(seconds, 1.0), 3)
        return rates
