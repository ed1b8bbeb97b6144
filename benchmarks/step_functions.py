"""Step functions of time: how many of something there are from which moment on."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right

Steps = list[tuple[float, float]]


def steps(intervals: list[tuple[float, float]]) -> Steps:
    """Return how many intervals are open from each of their ends on."""
    changes = sorted([(begin, 1) for begin, _ in intervals] + [(end, -1) for _, end in intervals])
    level, found = 0, []
    for at, change in changes:
        level += change
        found.append((at, float(level)))
    return found


def level(curve: Steps, at: float) -> float:
    """Return the value of a step function."""
    index = bisect_right(curve, (at, math.inf))
    return curve[index - 1][1] if index else 0.0


def integral(curve: Steps, begin: float, end: float) -> float:
    """Return the area below a step function."""
    points = [(begin, level(curve, begin)), *(p for p in curve if begin < p[0] < end), (end, 0.0)]
    pairs = itertools.pairwise(points)
    return sum(value * (later - at) for (at, value), (later, _) in pairs)
