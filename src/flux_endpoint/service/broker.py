"""The service's two connections to the broker.

The service publishes tasks and commands on one connection, and consumes results, job events and
status reports on the other. So a flood of tasks does not delay results.
"""

import logging
import threading

from flux_endpoint.amqp import AmqpConnection, ConnectionState
from flux_endpoint.amqp.connection import StateChange
from flux_endpoint.logs import event
from flux_endpoint.service import topology
from flux_endpoint.service.access.control import BrokerAccess
from flux_endpoint.service.changes import ChangeListener
from flux_endpoint.service.dependents import Dependents
from flux_endpoint.service.event_consumer import EventConsumer
from flux_endpoint.service.heartbeats import HeartbeatConsumer
from flux_endpoint.service.live_output import LiveOutput
from flux_endpoint.service.observer import BrokerObserver
from flux_endpoint.service.official import OfficialEndpoints
from flux_endpoint.service.output_fanout import OutputFanout
from flux_endpoint.service.results import ResultConsumer
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.task_publisher import TaskPublisher

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT = 3.0


class Broker:
    """All parts of the service that use AMQP.

    Args:
        settings: the service's settings.
        database: the service's database.
        access: access control for the broker; it has the URLs for clients and endpoints.
        changes: gets what arrives, and changes of the broker's state.
        live_output: exchanges the output of followed tasks with other services.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        database: Database,
        access: BrokerAccess,
        changes: ChangeListener,
        live_output: LiveOutput,
    ) -> None:
        self._access = access
        self._changes = changes
        url = settings.amqp_url
        self._announcer = _Announcer("tasks", "results")
        self._outward = AmqpConnection(
            url, name="service-tasks", on_state=self._on_outward, on_alarm=self._on_alarm
        )
        self._inward = AmqpConnection(
            url, name="service-results", on_state=self._on_inward, on_alarm=self._on_alarm
        )
        self.official = OfficialEndpoints(
            database, self._outward, access.urls, settings.official_window
        )
        self.publisher = TaskPublisher(database, self._outward, self.official)
        self.dependents = Dependents(database, self._outward)
        self._consumers = (
            ResultConsumer(
                database, self._inward, self.official, changes.tasks_ended, self.dependents.counted
            ),
            EventConsumer(database, self._inward, changes),
            HeartbeatConsumer(
                database, self._inward, changes.reports_stored, self.official.reported
            ),
        )
        self._fanout = live_output.others = OutputFanout(self._inward, live_output)
        self.observer = BrokerObserver(self._inward, self._outward)

    def start(self) -> None:
        """Begin to connect, to publish stored tasks and to consume. Returns at once."""
        for connection in (self._outward, self._inward):
            connection.declare(*topology.shared())
        self.publisher.start()
        self.official.start()
        self.dependents.start()
        self._fanout.start()
        for consumer in self._consumers:
            consumer.start()
        self._outward.start()
        self._inward.start()

    def close(self) -> None:
        """Finish the work in progress, for a few seconds at most, and close the connections."""
        for consumer in self._consumers:
            consumer.close(_CLOSE_TIMEOUT)
        self._inward.close(_CLOSE_TIMEOUT)
        self._fanout.close(_CLOSE_TIMEOUT)
        self._outward.close(_CLOSE_TIMEOUT)
        self.publisher.close(_CLOSE_TIMEOUT)
        self.official.close(_CLOSE_TIMEOUT)
        self.dependents.close(_CLOSE_TIMEOUT)

    def _on_outward(self, change: StateChange) -> None:
        self._announcer.announce("tasks", change)
        self._changes.broker_changed()
        if change.state is ConnectionState.CONNECTED:
            self.publisher.connected()
            self.official.connected()
            self.dependents.connected()
            self._access.broker_connected()
        else:
            self.publisher.disconnected()
            self.official.disconnected()
            self.dependents.disconnected()

    def _on_alarm(self, reason: str) -> None:
        self.observer.alarmed(reason)
        self._changes.broker_changed()

    def _on_inward(self, change: StateChange) -> None:
        self.observer.changed(change)
        self._announcer.announce("results", change)
        self._changes.broker_changed()


class _Announcer:
    """Logs once that the broker is unreachable, and once that both connections are back."""

    def __init__(self, *connections: str) -> None:
        self._missing = set(connections)
        self._announced = False
        self._lock = threading.Lock()

    def announce(self, connection: str, change: StateChange) -> None:
        with self._lock:
            if change.state is ConnectionState.CONNECTED:
                self._missing.discard(connection)
                if not self._missing:
                    self._announced = False
                    event(log, logging.INFO, "broker connected", address=change.address)
            elif change.state is not ConnectionState.CLOSED:
                self._missing.add(connection)
                event(
                    log,
                    logging.DEBUG if self._announced else logging.ERROR,
                    "broker unreachable, retrying until it is back",
                    address=change.address,
                    reason=change.reason,
                )
                self._announced = True
