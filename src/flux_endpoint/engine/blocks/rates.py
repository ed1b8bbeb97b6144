"""How long the tasks of a block take, and so how many of them may wait there."""

from __future__ import annotations

#: Tasks that take less than this many seconds may wait in a block for those before them.
_SHORT = 0.1
#: How many times over the workers have to be busy before that is known.
_ROUNDS = 4


class BlockRates:
    """Measures the pace of a block's workers.

    Over so many results that each worker has had several: many long tasks that begin and end
    together are not taken for short ones.
    """

    def __init__(self) -> None:
        self.workers = 1
        self._since = 0.0
        self._count = 0
        self._seconds = 1.0  # of one task on one worker

    def begins(self, now: float) -> None:
        """The block has had nothing to do until now."""
        self._since = now
        self._count = 0

    def finished(self, now: float) -> None:
        """A task has come to its end."""
        self._count += 1
        if self._count >= _ROUNDS * self.workers:
            self._seconds = (now - self._since) * self.workers / self._count
            self.begins(now)

    def ahead(self, most: int) -> int:
        """Return how many tasks a block may have for each worker, from 1 to `most`."""
        return max(1, min(most, int(_SHORT / max(self._seconds, 1e-6))))
