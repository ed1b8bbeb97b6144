"""The dispatcher's timers."""

import time
from enum import Enum


class Due(Enum):
    """The purpose of a timer."""

    LOOK = "look"  # a run is stopping: determine which tasks it has taken
    GONE = "gone"  # a run has not reported for too long
    SETTLE = "settle"  # results of an earlier run should have arrived by now
    START = "start"  # the endpoint may have to be started
    RELEASE = "release"  # there may be tasks and room for them
    EMPTY = "empty"  # endpoints were deleted: clean up
    SWEEP = "sweep"  # take over claims of services that have stopped


class Timers:
    """One timer for each purpose and endpoint. For one thread."""

    def __init__(self) -> None:
        self._at: dict[tuple[Due, str], float] = {}

    def set(self, due: Due, endpoint_id: str, delay: float) -> None:
        """Set a timer, or change it.

        Args:
            due: the purpose.
            endpoint_id: the endpoint.
            delay: seconds until the timer expires.
        """
        self._at[due, endpoint_id] = time.monotonic() + delay

    def within(self, due: Due, endpoint_id: str, delay: float) -> None:
        """Set a timer, unless it expires sooner already.

        Args:
            due: the purpose.
            endpoint_id: the endpoint.
            delay: seconds until the timer expires.
        """
        at = time.monotonic() + delay
        self._at[due, endpoint_id] = min(at, self._at.get((due, endpoint_id), at))

    def clear(self, due: Due, endpoint_id: str) -> None:
        """Cancel a timer, if it is set."""
        self._at.pop((due, endpoint_id), None)

    def wait(self) -> float | None:
        """Return the seconds until the next timer expires, `None` if there is none."""
        return max(min(self._at.values()) - time.monotonic(), 0) if self._at else None

    def take(self) -> list[tuple[Due, str]]:
        """Remove and return the expired timers."""
        now = time.monotonic()
        due = [key for key, at in self._at.items() if at <= now]
        for key in due:
            del self._at[key]
        return due
