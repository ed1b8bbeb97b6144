"""When the dispatcher has to look at an endpoint again."""

import time
from enum import Enum


class Due(Enum):
    """What for."""

    LOOK = "look"  # a run is leaving: see what it took
    GONE = "gone"  # a run has not reported for too long
    SETTLE = "settle"  # what an earlier run had should have come by now
    START = "start"  # there may be reason to start it
    RELEASE = "release"  # there may be tasks to give it
    EMPTY = "empty"  # it was deleted
    SWEEP = "sweep"  # claims of services that have ended


class Timers:
    """One time for each purpose and endpoint; for one thread."""

    def __init__(self) -> None:
        self._at: dict[tuple[Due, str], float] = {}

    def set(self, due: Due, endpoint_id: str, delay: float) -> None:
        """Come back after `delay` seconds, whatever was said before."""
        self._at[due, endpoint_id] = time.monotonic() + delay

    def within(self, due: Due, endpoint_id: str, delay: float) -> None:
        """Come back after `delay` seconds at the latest."""
        at = time.monotonic() + delay
        self._at[due, endpoint_id] = min(at, self._at.get((due, endpoint_id), at))

    def clear(self, due: Due, endpoint_id: str) -> None:
        """Don't come back for that."""
        self._at.pop((due, endpoint_id), None)

    def wait(self) -> float | None:
        """Return the seconds until the next, `None` if there is none."""
        return max(min(self._at.values()) - time.monotonic(), 0) if self._at else None

    def take(self) -> list[tuple[Due, str]]:
        """Return, and forget, those whose time has come."""
        now = time.monotonic()
        due = [key for key, at in self._at.items() if at <= now]
        for key in due:
            del self._at[key]
        return due
