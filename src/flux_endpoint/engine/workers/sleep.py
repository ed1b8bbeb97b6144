"""How long a loop with timers may sleep."""

from __future__ import annotations

import math
from collections.abc import Iterable

from flux_endpoint.turn_pause import TurnPause

#: `poll` takes milliseconds as a C int: at most 24.8 days, after which the loop checks again.
_LONGEST = 2**31 - 1
#: Pauses of a manager while none of its workers can run out of tasks.
MANAGER_PAUSE = TurnPause(share=1 / 2, longest=0.02, shortest=0.0005)
#: Pauses of the pool: half of a manager's reserve is in its workers, who need it meanwhile.
POOL_PAUSE = TurnPause(share=1 / 4, longest=0.02, shortest=0.0005)


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
