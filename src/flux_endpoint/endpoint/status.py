"""How far an agent is, and what others may know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto


class Phase(Enum):
    """How far an agent is."""

    #: It waits until the broker gives it the task queue; the engine was not started.
    CLAIMING = auto()
    WORKING = auto()
    #: It takes no more tasks; the engine ends.
    STOPPING = auto()


@dataclass(frozen=True)
class AgentStatus:
    """What others may know of the agent while it runs.

    Attributes:
        state: "disconnected" (from the broker or its queue, and trying), "connected" or "stopping".
        reason: why no tasks can come, or results can't be sent.
        executor: what runs the engine's jobs, "flux" or "local"; `None` until it was started.
        patience: seconds after which the agent gives up; infinite: never.
    """

    state: str
    reason: str
    executor: str | None
    patience: float = math.inf
