"""The pauses before what has failed is tried again, each with a length of its own."""

import math
from dataclasses import dataclass, field

from flux_endpoint.backoff import Backoff


@dataclass
class _Failing:
    pauses: Backoff
    #: Monotonic time of the next attempt; infinity: it is being tried.
    at: float = field(default=math.inf)


class RetryPauses:
    """The pauses of several works, by key. For one thread.

    Args:
        first: the first pause in seconds.
        last: the longest pause in seconds.
        limit: maximum number of works that are failing.
    """

    def __init__(self, first: float, last: float, limit: int) -> None:
        self._first, self._last = first, last
        self._limit = limit
        self._failing: dict[str, _Failing] = {}

    @property
    def next_at(self) -> float:
        """Monotonic time at which the next work is due; infinity: none is."""
        return min((each.at for each in self._failing.values()), default=math.inf)

    def failed(self, key: str, now: float) -> float | None:
        """Record a failed attempt.

        Args:
            key: the work.
            now: the monotonic time.

        Returns:
            The pause in seconds; `None`: too many works are failing for another one.
        """
        known = self._failing.get(key)
        if known is None:
            if len(self._failing) >= self._limit:
                return None
            known = self._failing[key] = _Failing(Backoff(self._first, self._last))
        pause = next(known.pauses)
        known.at = now + pause
        return pause

    def succeeded(self, key: str) -> None:
        """Record a successful attempt: the next failure has the first pause again."""
        self._failing.pop(key, None)

    def take_due(self, now: float) -> list[str]:
        """Begin the attempts that are due; return the works whose pause is not over.

        A work that was due at the last call, and was reported neither as failed nor as successful
        since, is forgotten: there was nothing to do.
        """
        for key, each in list(self._failing.items()):
            if math.isinf(each.at):
                del self._failing[key]
            elif each.at <= now:
                each.at = math.inf
        return [key for key, each in self._failing.items() if not math.isinf(each.at)]

    def clear(self) -> None:
        """Forget all: everything may be tried at once."""
        self._failing.clear()
