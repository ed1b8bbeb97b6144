"""How many tasks are sent ahead, so that short ones do not wait for messages."""

from __future__ import annotations

#: Tasks shorter than this many seconds are sent to a worker several at a time.
SHORT = 0.004
#: The most tasks that a worker is sent.
MOST_AHEAD = 32
#: The most tasks that a manager holds, unless its workers are more than half as many.
_MOST_HELD = 4096


def tasks_ahead(seconds: float) -> int:
    """Return the most tasks of a worker: one, or more if tasks take so few `seconds`."""
    return max(1, min(MOST_AHEAD, int(SHORT / max(seconds, 1e-6))))


def most_held(workers: int, ahead: int = MOST_AHEAD) -> int:
    """Return the most tasks that a manager holds: as many as its workers, and again as many.

    Args:
        workers: number of its workers.
        ahead: the most tasks of each.
    """
    return min(2 * ahead * workers, max(2 * workers, _MOST_HELD))
