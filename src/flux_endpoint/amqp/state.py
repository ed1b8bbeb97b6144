"""The states of a connection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ConnectionState(StrEnum):
    """States that `on_state` callbacks get."""

    CONNECTED = "connected"
    LOST = "lost"  # it was connected, and reconnects
    UNREACHABLE = "unreachable"  # an attempt failed, another follows
    CLOSED = "closed"  # by this program, for good


@dataclass(frozen=True)
class StateChange:
    """A change of a connection's state.

    Attributes:
        state: the new state.
        address: `host:port/vhost`, never with the password.
        reason: one sentence; empty when connected.
        retry_in: seconds until the next attempt; 0 when connected or closed.
        server: the broker's product and version, e.g. `RabbitMQ 3.10.8`, when connected.
    """

    state: ConnectionState
    address: str
    reason: str = ""
    retry_in: float = 0.0
    server: str = ""
