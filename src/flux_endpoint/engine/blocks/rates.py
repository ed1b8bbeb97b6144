"""Measures how long a block's tasks take; that limits how many of them queue there."""

from __future__ import annotations

#: Tasks shorter than this many seconds may queue in a block behind others.
_SHORT = 0.1
#: Number of results per worker that a measurement needs.
_ROUNDS = 4


class BlockRates:
    """Measures the throughput of a block's workers.

    It measures over several results per worker, so that many long tasks that begin and end
    together are not mistaken for short ones.
    """

    def __init__(self) -> None:
        #: The most workers that the block may have.
        self.workers = 1
        self._since = 0.0
        self._count = 0
        self._seconds = 1.0  # duration of one task on one worker

    def begins(self, now: float) -> None:
        """Restart the measurement: the block was idle until now."""
        self._since = now
        self._count = 0

    def finished(self, now: float) -> None:
        """Count a task that has ended."""
        self._count += 1
        if self._count >= _ROUNDS * self.workers:
            self._seconds = (now - self._since) * self.workers / self._count
            self.begins(now)

    def ahead(self, most: int) -> int:
        """Return how many tasks a block may have per worker, from 1 to `most`."""
        return max(1, min(most, int(_SHORT / max(self._seconds, 1e-6))))
