"""How the endpoint's connection to the broker is, each change told once."""

from __future__ import annotations

import logging

from flux_endpoint.amqp import ConnectionState, StateChange
from flux_endpoint.logs import event

log = logging.getLogger(__name__)


class Connectivity:
    """What is known of the connection; belongs to the agent's thread.

    Args:
        task_queue: the queue that tasks come from.
    """

    def __init__(self, task_queue: str) -> None:
        self._task_queue = task_queue
        self._refusal = ""
        self.connected = False
        #: Why it is not connected.
        self.trouble = ""

    def changed(self, change: StateChange) -> bool:
        """Take note of a change; return whether it is one that others should know of."""
        match change.state:
            case ConnectionState.CONNECTED:
                self.connected, self.trouble, self._refusal = True, "", ""
                event(log, logging.INFO, "connected to the broker", address=change.address)
            case ConnectionState.LOST | ConnectionState.UNREACHABLE:
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

    def refused(self, reason: str) -> None:
        """Take note that the broker does not let us have the task queue."""
        if reason == self._refusal:
            return
        self._refusal = reason
        what = (
            "another agent has this endpoint's task queue; trying again until it lets go"
            if "exclusive" in reason
            else "the broker refuses the task queue; trying again"
        )
        event(log, logging.ERROR, what, queue=self._task_queue, reason=reason)
