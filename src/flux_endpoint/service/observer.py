"""The broker's state: whether it is connected, its version, and the lengths of queues."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, wait

from flux_endpoint.amqp import AmqpConnection, ConnectionState, QueueAdmin, StateChange
from flux_endpoint.errors import PublishError
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.operations import BrokerDocument, QueueDocument

#: Seconds that the broker has to confirm a message, or to report that it is blocked.
_PROBE_TIMEOUT = 1.0
#: No queue has this name, so the broker returns the message of a probe.
_PROBE_KEY = "flux-endpoint.probe"


class BrokerObserver:
    """Watches the service's connections to the broker. Safe to use from several threads.

    Args:
        inward: the connection on which the service consumes.
        outward: the connection on which it publishes.
    """

    def __init__(self, inward: AmqpConnection, outward: AmqpConnection) -> None:
        self._connections = (inward, outward)
        self._outward = outward
        self._queue_admin = QueueAdmin(inward)
        self._probing = threading.Lock()
        self._probe: Future[None] | None = None
        self._answered = threading.Event()
        self._last: tuple[StateChange, float] | None = None
        self._server = ""

    def changed(self, change: StateChange) -> None:
        """Record a change of one connection's state."""
        if change.server:
            self._server = change.server
        before = self._last
        if before is None or before[0].state is not change.state:
            self._last = change, time.time()
        else:
            self._last = change, before[1]

    def alarmed(self, _reason: str) -> None:
        """Record that the broker has reported whether it accepts messages."""
        self._answered.set()

    @property
    def connected(self) -> bool:
        """Whether the service can use the broker now."""
        return all(connection.wait_connected(0) for connection in self._connections)

    def broker(self) -> BrokerDocument:
        """Return the state of the broker."""
        if self._last is None:
            return BrokerDocument(
                connected=False, address="", server="", since=None, reason="not connected yet"
            )
        change, since = self._last
        connected = self.connected
        reason = change.reason or ("" if connected else "one of two connections is lost")
        return BrokerDocument(
            connected=connected,
            address=change.address,
            server=self._server,
            since=since if connected == (change.state is ConnectionState.CONNECTED) else None,
            reason="" if connected else reason,
            alarm=self._alarm() if connected else "",
        )

    def queued_tasks(self, queue: str, timeout: float) -> set[str] | None:
        """Return the ids of the tasks in an endpoint's queue; `None`: the queue has a consumer.

        Args:
            queue: name of the queue.
            timeout: time limit in seconds.

        Raises:
            AmqpError: the queue can't be read.
            TimeoutError: the broker does not answer in time.
        """
        headers = self._queue_admin.look(queue).result(timeout)
        if headers is None:
            return None
        return {str(each.get(queues.TASK_ID_HEADER)) for each in headers}

    def _alarm(self) -> str:
        """Return why the broker is blocked, or an empty text.

        RabbitMQ reports an alarm only on a connection that publishes, so a probe is published.
        """
        with self._probing:
            under_way = self._probe is not None and not self._probe.done()
            if not under_way and not any(each.alarm for each in self._connections):
                self._answered.clear()
                try:
                    self._probe = self._outward.publish("", _PROBE_KEY, b"", persistent=False)
                except PublishError:  # the service is ending
                    return ""
                self._probe.add_done_callback(lambda _: self._answered.set())
                self._answered.wait(_PROBE_TIMEOUT)
        return next((each.alarm for each in self._connections if each.alarm), "")

    def queues(self, names: Iterable[str], timeout: float) -> dict[str, QueueDocument]:
        """Return the lengths of queues; those without an answer in time are left out.

        Args:
            names: names of queues.
            timeout: time limit in seconds.
        """
        if not self.connected:
            return {}
        asked = {name: self._queue_admin.count(name) for name in names}
        wait(asked.values(), timeout)
        found = {}
        for name, future in asked.items():
            if future.done() and future.exception() is None:
                count = future.result()
                if count is not None:
                    found[name] = QueueDocument(messages=count.messages, consumers=count.consumers)
        return found
