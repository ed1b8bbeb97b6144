"""Step functions of time, e.g. the number of busy cores."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right

#: Pairs of a time and the value from that time on.
Steps = list[tuple[float, float]]


def steps(intervals: list[tuple[float, float]]) -> Steps:
    """Return the number of overlapping intervals as a function of time."""
    changes = sorted([(begin, 1) for begin, _ in intervals] + [(end, -1) for _, end in intervals])
    level, found = 0, []
    for at, change in changes:
        level += change
        found.append((at, float(level)))
    return found


def level(curve: Steps, at: float) -> float:
    """Return the value of a step function at a time."""
    index = bisect_right(curve, (at, math.inf))
    return curve[index - 1][1] if index else 0.0


def integral(curve: Steps, begin: float, end: float) -> float:
    """Return the integral of a step function between two times."""
    points = [(begin, level(curve, begin)), *(p for p in curve if begin < p[0] < end), (end, 0.0)]
    pairs = itertools.pairwise(points)
    return sum(value * (later - at) for (at, value), (later, _) in pairs)
