"""The state of the endpoint's connection to the broker; each change is reported once."""

from __future__ import annotations

import logging
import time

from flux_endpoint.amqp import ConnectionState, StateChange
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

#: Seconds for which another agent may hold the task queue before this one gives up. After a host
#: failure, the broker needs 20 to 30 seconds to notice that its agent is gone.
OWNER_TIMEOUT = 40.0


class Connectivity:
    """The state of the connection and the task queue; belongs to the agent's thread.

    Args:
        task_queue: the queue that tasks come from.
    """

    def __init__(self, task_queue: str) -> None:
        self._task_queue = task_queue
        self._refusal = ""
        self._rivalled_since = float("inf")
        #: Whether there is a connection.
        self.connected = False
        #: Whether the broker has granted this agent the task queue, now or earlier.
        self.owns_queue = False
        #: Why no tasks come.
        self.trouble = ""
        #: Why no results can be sent although there is a connection.
        self.alarm = ""

    @property
    def takes_tasks(self) -> bool:
        """Whether tasks can come."""
        return self.connected and self.owns_queue and not self.trouble

    @property
    def gives_up_in(self) -> float:
        """Seconds that another agent may still hold the task queue; infinite if none does."""
        return self._rivalled_since + OWNER_TIMEOUT - time.monotonic()

    def changed(self, change: StateChange) -> bool:
        """Record a change; return whether it must be reported."""
        match change.state:
            case ConnectionState.CONNECTED:
                self.connected, self.trouble, self._refusal = True, "", ""
                self._rivalled_since = float("inf")
                event(log, logging.INFO, "connected to the broker", address=change.address)
            case ConnectionState.LOST | ConnectionState.UNREACHABLE:
                self._rivalled_since = float("inf")
                trouble = f"broker {change.address}: {change.reason}"
                if trouble == self.trouble:
                    return False
                self.connected, self.trouble = False, trouble
                event(
                    log,
                    logging.WARNING,
                    f"broker connection {change.state}, trying again until it is back",
                    address=change.address,
                    reason=change.reason,
                )
            case ConnectionState.CLOSED:
                self.connected = False
                return False
        return True

    def alarmed(self, reason: str) -> bool:
        """Record whether the broker accepts messages; return True: it must be reported."""
        self.alarm = reason and (
            f"the broker takes no messages now ({reason}): results and status reports wait"
        )
        return True

    def granted(self) -> bool:
        """Record that this agent has the task queue; return whether that must be reported."""
        news = bool(self.trouble) or not self.owns_queue
        self.owns_queue, self.trouble, self._refusal = True, "", ""
        self._rivalled_since = float("inf")
        return news

    def refused(self, reason: str) -> bool:
        """Record that the broker refuses the task queue; return whether that must be reported."""
        if "exclusive" in reason:
            return self.rivalled(reason)
        self._rivalled_since = float("inf")
        trouble = f"the broker refuses the task queue ({reason}); trying again"
        return self._not_ours(trouble, reason)

    def rivalled(self, reason: str) -> bool:
        """Record that another agent has the task queue; return whether that must be reported."""
        self._rivalled_since = min(self._rivalled_since, time.monotonic())
        trouble = "another agent has this endpoint's task queue; trying again until it lets go"
        return self._not_ours(trouble, reason)

    def _not_ours(self, trouble: str, reason: str) -> bool:
        if reason == self._refusal:
            return False
        self._refusal, self.trouble = reason, trouble
        event(log, logging.ERROR, trouble, queue=self._task_queue, reason=reason)
        return True
