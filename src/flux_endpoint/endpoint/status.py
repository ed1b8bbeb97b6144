"""How far an agent is, and what others may know of it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from enum import Enum, auto

from flux_endpoint.logs import event

log = logging.getLogger(__name__)


class AgentPhase(Enum):
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


class JournalDisk:
    """Whether the journal can be written, each change told once."""

    def __init__(self) -> None:
        #: Why it can't be written; empty: it can.
        self.trouble = ""

    def failed(self, reason: str) -> bool:
        """Take note that it can't be written; return whether others should know of it."""
        if self.trouble:
            return False
        self.trouble = f"{reason}. No task is taken and no result sent until it can be written"
        event(log, logging.ERROR, self.trouble)
        return True

    def mended(self) -> bool:
        """Take note that it was written; return whether others should know of it."""
        if not self.trouble:
            return False
        self.trouble = ""
        event(log, logging.WARNING, "the journal can be written again")
        return True
