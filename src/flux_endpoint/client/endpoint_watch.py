"""Warns when an endpoint with open tasks is offline: once, not for every task."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from flux_endpoint.logs import event

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EndpointState:
    """The state of an endpoint at the service.

    Attributes:
        endpoint_id: its id.
        online: whether it is connected.
        last_seen: time of its last sign of life (s since the epoch); `None`: never.
    """

    endpoint_id: str
    online: bool
    last_seen: float | None = None


def state_from(endpoint_id: str, status: Any, last_seen: Any) -> EndpointState | None:
    """Return the state in an answer of the service.

    Args:
        endpoint_id: the endpoint.
        status: "online" or "offline".
        last_seen: seconds since the epoch, if known.

    Returns:
        The state; `None` if the answer has no status, as those of older services.
    """
    if status not in ("online", "offline"):
        return None
    is_time = isinstance(last_seen, int | float) and not isinstance(last_seen, bool)
    return EndpointState(endpoint_id, status == "online", float(last_seen) if is_time else None)


class EndpointWatch:
    """Logs when an endpoint goes offline and when it is back, once each. For one thread."""

    def __init__(self) -> None:
        self._offline: set[str] = set()

    def update(self, state: EndpointState) -> None:
        """Process the state of an endpoint that has open tasks."""
        name = f"endpoint {state.endpoint_id}"
        if state.online and state.endpoint_id in self._offline:
            self._offline.discard(state.endpoint_id)
            event(log, logging.WARNING, f"{name} is online again")
        elif not state.online and state.endpoint_id not in self._offline:
            self._offline.add(state.endpoint_id)
            since = "and has never been online"
            if state.last_seen is not None:
                moment = time.localtime(state.last_seen)
                since = f"since {time.strftime('%Y-%m-%d %H:%M:%S', moment)}"
            text = f"{name} is offline {since}: tasks wait at the service until it is back"
            event(log, logging.WARNING, text)
