"""How long a loop may sleep that has something to do at given moments."""

from __future__ import annotations

import math
from collections.abc import Iterable

#: `poll` takes its time in milliseconds as a C int: 24.8 days, after which a loop looks again.
_LONGEST = 2**31 - 1


def milliseconds_until(moments: Iterable[float], now: float) -> int | None:
    """Return the timeout of a poll that ends just after the first of `moments`.

    Args:
        moments: in seconds, of the clock that `now` was read from; infinity is never.
        now: the present moment, in seconds.

    Returns:
        Milliseconds, or `None` for a poll without end.
    """
    first = min(moments, default=math.inf)
    if first == math.inf:
        return None
    return min(int(max(0.0, first - now) * 1000) + 1, _LONGEST)
