"""The channels of a connection: for declarations, for publishing, and one for each consumer.

Everything here runs on the connection's thread.
"""

from __future__ import annotations

from collections.abc import Callable

from pika.channel import Channel

from flux_endpoint.amqp.consumer import Consumer
from flux_endpoint.amqp.declarer import Declarer
from flux_endpoint.amqp.publisher import OutgoingMessage, Publisher
from flux_endpoint.amqp.wire import WireConnection


class Channels:
    """Opens the channels on each new connection: first that for declarations, then the others.

    Args:
        on_settled: called with each message that the broker has confirmed, or that has failed.
    """

    def __init__(self, on_settled: Callable[[OutgoingMessage], None]) -> None:
        self._connection: WireConnection | None = None
        #: Whether the lasting declarations are made, so that the other channels may be opened.
        self._declared = False
        self._consumers: list[Consumer] = []
        self.publisher = Publisher(on_settled, self._open_publisher)
        self.declarer = Declarer(self.open)

    def connected(self, connection: WireConnection, on_ready: Callable[[str], None]) -> None:
        """Repeat the lasting declarations, then open the other channels.

        Args:
            connection: it is open.
            on_ready: called at the end with the server's product and version.
        """
        self._connection = connection

        def declared() -> None:
            self._declared = True
            self._open_publisher()
            for consumer in self._consumers:
                consumer.open()
            on_ready(connection.server)

        self.declarer.connected(declared)

    def lost(self) -> None:
        """Handle the loss of the connection, and with it of all channels."""
        self._connection = None
        self._declared = False
        self.publisher.lost()
        self.declarer.lost()
        for consumer in self._consumers:
            consumer.lost()

    def fail_all(self, reason: str) -> None:
        """Fail all unconfirmed messages and declarations."""
        self.publisher.fail_all(reason)
        self.declarer.fail_all(reason)

    def open(self, on_open: Callable[[Channel], None]) -> Channel | None:
        """Open a channel and return it if the connection is up; else do nothing."""
        if self._connection is None or not self._connection.is_open:
            return None
        channel: Channel = self._connection.channel(on_open_callback=on_open)
        return channel

    def add(self, consumer: Consumer) -> None:
        """Open a channel for a new consumer, now or when there is a connection."""
        self._consumers.append(consumer)
        if self._declared:
            consumer.open()

    def remove(self, consumer: Consumer) -> None:
        """Remove a cancelled consumer."""
        self._consumers.remove(consumer)

    def flush_answers(self) -> None:
        """Send all pending answers to deliveries."""
        for consumer in self._consumers:
            consumer.flush()

    def _open_publisher(self) -> None:
        self.open(self.publisher.opened)
