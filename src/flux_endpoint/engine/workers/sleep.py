"""How long a loop with timers may sleep."""

from __future__ import annotations

import math
from collections.abc import Iterable

#: `poll` takes milliseconds as a C int: at most 24.8 days, after which the loop checks again.
_LONGEST = 2**31 - 1
#: The shortest and the longest pause before what has arrived is handled, in seconds.
_PAUSES = (0.0005, 0.005)


def milliseconds_until(moments: Iterable[float], now: float) -> int | None:
    """Return the timeout of a poll that ends just after the first of `moments`.

    Args:
        moments: times in seconds, of the same clock as `now`; infinity means never.
        now: the current time, in seconds.

    Returns:
        Milliseconds, or `None` for a poll without timeout.
    """
    first = min(moments, default=math.inf)
    if first == math.inf:
        return None
    return min(int(max(0.0, first - now) * 1000) + 1, _LONGEST)


def pause_with(reserve: float) -> float:
    """Return how long to collect messages while no worker can run out of tasks.

    What arrives in the meantime is handled in one turn and sent in one message.

    Args:
        reserve: seconds for which each busy worker has tasks.

    Returns:
        Seconds; 0 if it is not worth a pause.
    """
    shortest, longest = _PAUSES
    pause = min(reserve / 2, longest)
    return pause if pause >= shortest else 0.0
