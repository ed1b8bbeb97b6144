"""How the endpoint's connection to the broker is, each change told once."""

from __future__ import annotations

import logging
import time

from flux_endpoint.amqp import ConnectionState, StateChange
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

#: Seconds for which another agent may have the task queue before this one gives up. The broker
#: takes 20 to 30 to notice that an agent is gone whose host has failed.
OWNER_PATIENCE = 40.0


class Connectivity:
    """What is known of the connection and of the task queue; belongs to the agent's thread.

    Args:
        task_queue: the queue that tasks come from.
    """

    def __init__(self, task_queue: str) -> None:
        self._task_queue = task_queue
        self._refusal = ""
        self._rivalled_since = float("inf")
        #: Whether there is a connection.
        self.connected = False
        #: Whether the broker has given this agent the task queue, now or earlier.
        self.owns_queue = False
        #: Why no tasks come.
        self.trouble = ""
        #: Why no results can be sent, though there is a connection.
        self.alarm = ""

    @property
    def takes_tasks(self) -> bool:
        """Whether tasks can come."""
        return self.connected and self.owns_queue and not self.trouble

    @property
    def patience(self) -> float:
        """Seconds that another agent may still keep the task queue; infinite if none has it."""
        return self._rivalled_since + OWNER_PATIENCE - time.monotonic()

    def changed(self, change: StateChange) -> bool:
        """Take note of a change; return whether it is one that others should know of."""
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
        """Take note whether the broker takes messages; return that others should know of it."""
        self.alarm = reason and (
            f"the broker takes no messages now ({reason}): results and status reports wait"
        )
        return True

    def granted(self) -> bool:
        """Take note that the task queue is ours; return whether others should know of it."""
        news = bool(self.trouble) or not self.owns_queue
        self.owns_queue, self.trouble, self._refusal = True, "", ""
        self._rivalled_since = float("inf")
        return news

    def refused(self, reason: str) -> bool:
        """Take note that the task queue is not ours; return whether others should know of it."""
        if "exclusive" in reason:
            return self.rivalled(reason)
        self._rivalled_since = float("inf")
        trouble = f"the broker refuses the task queue ({reason}); trying again"
        return self._not_ours(trouble, reason)

    def rivalled(self, reason: str) -> bool:
        """Take note that another agent has the queue; return whether others should know of it."""
        self._rivalled_since = min(self._rivalled_since, time.monotonic())
        trouble = "another agent has this endpoint's task queue; trying again until it lets go"
        return self._not_ours(trouble, reason)

    def _not_ours(self, trouble: str, reason: str) -> bool:
        if reason == self._refusal:
            return False
        self._refusal, self.trouble = reason, trouble
        event(log, logging.ERROR, trouble, queue=self._task_queue, reason=reason)
        return True
