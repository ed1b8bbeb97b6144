"""What is known of the broker: whether it is there, which it is, how long queues are."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import wait

from flux_endpoint.amqp import AmqpConnection, ConnectionState, Custodian, StateChange
from flux_endpoint.protocol.operations import BrokerDocument, QueueDocument


class BrokerObserver:
    """Watches the service's connections; its methods are for any thread.

    Args:
        connections: all of them. The broker counts as connected if each is.
    """

    def __init__(self, *connections: AmqpConnection) -> None:
        self._connections = connections
        self._custodian = Custodian(connections[0])
        self._last: tuple[StateChange, float] | None = None
        self._server = ""

    def changed(self, change: StateChange) -> None:
        """Take a change of one connection's state."""
        if change.server:
            self._server = change.server
        before = self._last
        if before is None or before[0].state is not change.state:
            self._last = change, time.time()
        else:
            self._last = change, before[1]

    @property
    def connected(self) -> bool:
        """Whether the service can use the broker now."""
        return all(connection.wait_connected(0) for connection in self._connections)

    def broker(self) -> BrokerDocument:
        """Return how the broker is."""
        if self._last is None:
            return BrokerDocument(
                connected=False, address="", server="", since=None, reason="not connected yet"
            )
        change, since = self._last
        connected = self.connected
        reason = change.reason or ("" if connected else "one of two connections is away")
        return BrokerDocument(
            connected=connected,
            address=change.address,
            server=self._server,
            since=since if connected == (change.state is ConnectionState.CONNECTED) else None,
            reason="" if connected else reason,
        )

    def queues(self, names: Iterable[str], timeout: float) -> dict[str, QueueDocument]:
        """Return those of the queues that the broker tells of within `timeout` seconds."""
        if not self.connected:
            return {}
        asked = {name: self._custodian.count(name) for name in names}
        wait(asked.values(), timeout)
        found = {}
        for name, future in asked.items():
            if future.done() and future.exception() is None:
                count = future.result()
                if count is not None:
                    found[name] = QueueDocument(messages=count.messages, consumers=count.consumers)
        return found
