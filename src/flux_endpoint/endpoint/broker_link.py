"""The endpoint's connection to the broker: its two queues, and everything that it publishes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from flux_endpoint.amqp import AmqpConnection, ConnectionState, Consumer, StateChange
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.event_sender import EventSender
from flux_endpoint.endpoint.inbox import (
    BrokerAlarm,
    CommandDelivery,
    ConsumeRefused,
    Event,
    QueueGranted,
)
from flux_endpoint.endpoint.outbox import PublishTarget, ResultOutbox
from flux_endpoint.endpoint.registration import BrokerUrl
from flux_endpoint.endpoint.report import AgentCounts, StatusReporter
from flux_endpoint.errors import PublishError
from flux_endpoint.logs import event
from flux_endpoint.protocol.queues import EndpointQueues

log = logging.getLogger(__name__)

#: The most requests to end a task that are prefetched.
COMMAND_PREFETCH = 64
#: Seconds of the AMQP heartbeat: limits how long a half-dead connection can block the task queue.
AMQP_HEARTBEAT = 10


class BrokerLink:
    """Receives into the agent's inbox, and publishes. Belongs to the agent's thread.

    Args:
        queues: the answer to the registration.
        config: the endpoint's configuration.
        url: returns the broker's URL for each attempt; `None`: the URL in `queues`.
        put: puts an event into the agent's inbox; called on the connection's thread.

    Attributes:
        outbox: results that await their confirms.
        events: job events.
        reports: status reports.
    """

    def __init__(
        self,
        queues: EndpointQueues,
        config: EndpointConfig,
        url: BrokerUrl | None,
        put: Callable[[Event], None],
    ) -> None:
        self._queues = queues
        self._config = config
        self._url = url
        self._put = put
        self._connection = AmqpConnection(
            url or queues.task_queue_info.connection_url,
            name=f"endpoint {queues.endpoint_id}",
            on_state=self._on_state,
            on_alarm=lambda reason: put(BrokerAlarm(reason)),
            heartbeat=AMQP_HEARTBEAT,
            # `max_in_flight` does flow control: the agent's thread must not block here, least of
            # all before the connection is started.
            max_unconfirmed=None,
        )
        self._consumer: Consumer
        self._paused = False
        self.outbox = ResultOutbox(
            self._connection, queues.result_queue_info, put, bundles=queues.takes_bundles
        )
        self.events = EventSender(self._connection, queues.event_queue_info)
        heartbeats = PublishTarget(queues.heartbeat_queue_info)
        self.reports = StatusReporter(queues.endpoint_id, heartbeats, config)

    def start(self) -> None:
        """Connect, and claim the task queue."""
        self._connection.start()
        self._consumer = self._connection.consume(
            self._queues.task_queue_info.queue,
            self._put,
            prefetch=self._config.messages_ahead,
            exclusive=True,
            bundles=True,
            on_accepted=lambda: self._put(QueueGranted()),
            on_refused=lambda reason: self._put(ConsumeRefused(reason)),
        )

    def take_commands(self) -> None:
        """Begin to consume the command queue."""
        self._connection.consume(
            self._queues.command_queue_info.queue,
            lambda delivery: self._put(CommandDelivery(delivery)),
            prefetch=COMMAND_PREFETCH,
        )

    def regulate(self, in_flight: int) -> None:
        """Pause the task queue while enough tasks are in flight.

        Args:
            in_flight: number of tasks that are unfinished or whose results are unconfirmed.
        """
        limit = self._config.max_in_flight
        if not self._paused and in_flight >= limit:
            self._paused = True
            self._consumer.pause()
        elif self._paused and in_flight <= limit * 3 // 4:
            self._paused = False
            self._consumer.resume()

    def publish(self, results: Iterable[tuple[str, bytes]], *, alone: bool = False) -> None:
        """Publish results that are in the journal, which keeps them until they are confirmed.

        Args:
            results: each task's id and the body of its result.
            alone: whether each goes in its own message.
        """
        try:
            self.outbox.publish(results, alone=alone)
        except PublishError:  # the connection was just closed
            event(log, logging.DEBUG, "results left for the next start")

    def report(self, status: dict[str, object], running: int, *, active: bool) -> None:
        """Send a status report.

        Args:
            status: the engine's status, and why tasks can't come.
            running: number of unfinished tasks.
            active: false in the last report.
        """
        counts = AgentCounts(running, len(self.outbox), self._paused)
        self.reports.send(self._connection, status, counts, active=active)

    def queue_lost(self) -> None:
        """Ask the service whether the endpoint still exists: its queue may have been deleted."""
        if self._url is not None:
            self._url.ask()

    def take_no_tasks(self) -> None:
        """End the subscription to the task queue; unanswered messages stay at the broker."""
        self._consumer.cancel()

    def close(self, grace: float) -> None:
        """Close the connection.

        Args:
            grace: seconds to wait for outstanding confirms.
        """
        self._connection.close(grace)

    def _on_state(self, change: StateChange) -> None:
        """Handle a change of the connection's state. Runs on the connection's thread."""
        if self._url is not None and change.state is ConnectionState.CONNECTED:
            self._url.connected()
        self._put(change)
