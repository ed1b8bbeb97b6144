"""The agent's phase, and its published status."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from enum import Enum, auto

from flux_endpoint.logs import event

log = logging.getLogger(__name__)


class AgentPhase(Enum):
    """Phases of the agent."""

    #: It waits for the task queue; the engine is not started yet.
    CLAIMING = auto()
    WORKING = auto()
    #: It takes no more tasks; the engine ends.
    STOPPING = auto()


@dataclass(frozen=True)
class AgentStatus:
    """The published status of a running agent.

    Attributes:
        state: "disconnected" (from the broker or its queue, and trying), "connected" or "stopping".
        reason: why no tasks can come, or results can't be sent.
        executor: what runs the engine's jobs, "flux" or "local"; `None` until it has started.
        gives_up_in: seconds after which the agent gives up; infinite: never.
    """

    state: str
    reason: str
    executor: str | None
    gives_up_in: float = math.inf


class JournalDisk:
    """Whether the journal can be written; each change is reported once."""

    def __init__(self) -> None:
        #: Why it can't be written; empty if it can.
        self.trouble = ""

    def failed(self, reason: str) -> bool:
        """Record that it can't be written; return whether that must be reported."""
        if self.trouble:
            return False
        self.trouble = f"{reason}. No task is taken and no result sent until it can be written"
        event(log, logging.ERROR, self.trouble)
        return True

    def mended(self) -> bool:
        """Record that it was written; return whether that must be reported."""
        if not self.trouble:
            return False
        self.trouble = ""
        event(log, logging.WARNING, "the journal can be written again")
        return True
