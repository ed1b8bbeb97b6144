"""Pauses between attempts that grow from one failure to the next."""

from __future__ import annotations

import random


class Backoff:
    """An endless iterator over the seconds to wait before the next attempt.

    Args:
        first: the first pause (s).
        last: the longest pause (s).
        factor: how many times as long as the one before each pause is.
        jitter: share of a pause that is left to chance, so that those who failed together do not
            come back together: 0.5 makes it 50 to 100 % of its length.

    Attributes:
        failures: pauses taken since the last `reset`.
    """

    def __init__(
        self, first: float, last: float, *, factor: float = 2.0, jitter: float = 0.5
    ) -> None:
        self._first, self._last = first, last
        self._factor = factor
        self._jitter = jitter
        self.reset()

    def reset(self) -> None:
        """Begin with the first pause again: an attempt has succeeded."""
        self.failures = 0
        self._pause = min(self._first, self._last)

    def __iter__(self) -> Backoff:
        return self

    def __next__(self) -> float:
        pause = self._pause * random.uniform(1 - self._jitter, 1)  # noqa: S311 - not a secret
        self._pause = min(self._pause * self._factor, self._last)
        self.failures += 1
        return pause
