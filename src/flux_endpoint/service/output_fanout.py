"""Passes the output of followed tasks on to the other services of the database.

The services share the queues of what endpoints send, so that each gets some of it. A service whose
users follow a task says so to the others, which then pass on what they get of its output, and that
it has ended. While nobody follows, nothing is sent.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol
from uuid import uuid4

from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.errors import PublishError
from flux_endpoint.logs import event
from flux_endpoint.owner_thread import OwnerThread
from flux_endpoint.protocol.queues import LIVE_OUTPUT_EXCHANGE
from flux_endpoint.service import topology

log = logging.getLogger(__name__)

#: Seconds for which a service passes on a task's output after another one has asked for it, and
#: after which the broker drops a message.
PASSED_ON = 30.0
#: The most tasks of other services; more get their output at the end.
MOST_FOLLOWED = 4096
#: Maximum number of unacknowledged deliveries.
_PREFETCH = 64


class OutputReceiver(Protocol):
    """Gets what other services pass on; see `LiveOutput`."""

    def add(self, task_id: str, streams: dict[str, Any]) -> None:
        """Add parts of the streams of a running task."""

    def end(self, task_ids: Collection[str]) -> None:
        """Note that tasks have ended."""


class OutputFanout:
    """The connection between the followers of several services. Safe to use from several threads.

    Args:
        connection: connection to the broker.
        receiver: gets what other services pass on.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        connection: AmqpConnection,
        receiver: OutputReceiver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._receiver = receiver
        self._clock = clock
        self._id = str(uuid4())
        self._lock = threading.Lock()
        #: Until when each task is followed at other services.
        self._others: dict[str, float] = {}
        #: Until when any is.
        self._until = -math.inf
        #: Tasks of this service's users that the others are yet to hear of.
        self._announced: set[str] = set()
        self._thread = OwnerThread("live output")

    def start(self) -> None:
        """Begin to listen to the other services."""
        self._thread.start()
        self._connection.declare(*topology.output_of_service(self._id))
        self._connection.consume(
            topology.live_output_queue(self._id),
            lambda delivery: self._thread.post(lambda: self._received(delivery)),
            prefetch=_PREFETCH,
        )

    def close(self, timeout: float) -> None:
        """Stop, within `timeout` seconds."""
        self._thread.stop()
        self._thread.join(timeout)

    # Of this service, for the others

    @property
    def follow(self) -> bool:
        """Whether others have followed tasks lately."""
        return self._until > self._clock()

    def followed(self, task_id: str) -> None:
        """Say that a user of this service follows a task; does not wait for the broker."""
        with self._lock:
            if task_id in self._announced:
                return
            self._announced.add(task_id)
        self._thread.post(lambda: self._announce(task_id))

    def _announce(self, task_id: str) -> None:
        with self._lock:
            self._announced.discard(task_id)
        self._send({"followed": task_id})

    def printed(self, task_id: str, streams: dict[str, Any]) -> None:
        """Pass on parts of a task's streams, if it is followed elsewhere."""
        if self._of_others([task_id]):
            self._send({"task": task_id, "streams": streams})

    def ended(self, task_ids: Collection[str]) -> None:
        """Pass on that tasks have ended, if they are followed elsewhere."""
        if known := self._of_others(task_ids):
            self._send({"ended": known})

    def _of_others(self, task_ids: Collection[str]) -> list[str]:
        now = self._clock()
        with self._lock:
            return [each for each in task_ids if self._others.get(each, now) > now]

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"service": self._id, **message}).encode()
        try:
            self._connection.publish(
                LIVE_OUTPUT_EXCHANGE,
                "",
                body,
                mandatory=False,  # no other service may be there
                persistent=False,
                expiration=PASSED_ON,
            )
        except PublishError:  # the service is ending
            return

    # Of other services, on the thread

    def _received(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            message = json.loads(delivery.body)
        except ValueError:
            message = None
        match message:
            case {"service": self._id}:
                pass
            case {"followed": str() as task_id}:
                self._note(task_id)
            case {"task": str() as task_id, "streams": dict() as streams}:
                self._receiver.add(task_id, streams)
            case {"ended": list() as task_ids}:
                self._receiver.end([each for each in task_ids if isinstance(each, str)])
            case _:
                event(log, logging.WARNING, "unreadable message of another service dropped")

    def _note(self, task_id: str) -> None:
        now = self._clock()
        with self._lock:
            if len(self._others) >= MOST_FOLLOWED:
                self._others = {each: until for each, until in self._others.items() if until > now}
            if task_id in self._others or len(self._others) < MOST_FOLLOWED:
                self._others[task_id] = self._until = now + PASSED_ON
