"""How long a loop collects what arrives, so that one turn handles all of it.

A turn costs about the same for one event as for many: a wake-up, a message, a commit. Work that is
already ahead keeps others busy meanwhile. So a loop leaves a pause between two turns that is a part
of the time that this work takes; with nothing ahead, it handles each event at once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TurnPause:
    """The pauses of one loop.

    Attributes:
        share: length of a pause, as a part of the time that the work ahead takes.
        longest: the longest pause, in seconds.
        shortest: a shorter pause (s) is left out, because a sleep has a cost, too.
    """

    share: float
    longest: float
    shortest: float = 0.0

    def left(self, ahead: float, passed: float = 0.0) -> float:
        """Return for how many seconds to sleep now.

        Args:
            ahead: how many seconds the work takes that is ahead.
            passed: seconds since the last turn.
        """
        pause = min(self.share * ahead, self.longest)
        return max(0.0, pause - passed) if pause >= self.shortest else 0.0
