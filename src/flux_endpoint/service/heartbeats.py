"""Consumes status reports of endpoints; stores the last one of each and its time of arrival."""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.errors import InvalidMessageError
from flux_endpoint.logs import event
from flux_endpoint.owner_thread import OwnerThread
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.fields import readable
from flux_endpoint.protocol.messages import EPStatusReport, unpack
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

_PREFETCH = 256

_Reports = Sequence[tuple[str, Mapping[str, Any]]]


class HeartbeatConsumer:
    """Consumes the queue `heartbeats` on its own thread.

    Args:
        database: the service's database.
        connection: connection to the broker.
        on_stored: called with the ids of the endpoints whose reports were stored.
        on_reports: called with the reports of official endpoints: pairs of endpoint id and report,
            in order of arrival.
    """

    def __init__(
        self,
        database: Database,
        connection: AmqpConnection,
        on_stored: Callable[[Collection[str]], None],
        on_reports: Callable[[_Reports], None],
    ) -> None:
        self._database = database
        self._connection = connection
        self._on_stored = on_stored
        self._on_reports = on_reports
        #: Deliveries since the last turn of the thread.
        self._batch: list[Delivery] = []
        self._thread = OwnerThread(
            "heartbeats", after_turn=self._record_batch, at_end=self._record_batch
        )

    def start(self) -> None:
        """Begin to consume."""
        self._thread.start()
        self._connection.consume(
            queues.HEARTBEATS_QUEUE,
            lambda delivery: self._thread.post(lambda: self._batch.append(delivery)),
            prefetch=_PREFETCH,
        )

    def close(self, timeout: float = 5.0) -> None:
        """Stop, within `timeout` seconds."""
        self._thread.stop()
        self._thread.join(timeout)

    def _record_batch(self) -> float:
        batch, self._batch = self._batch, []
        self._record(batch)
        return math.inf

    def _record(self, deliveries: list[Delivery]) -> None:
        all_reports: list[tuple[str, dict[str, Any]]] = []
        readable: list[Delivery] = []
        for delivery in deliveries:
            try:
                endpoint_id, report = _parse(delivery)
            except Exception as error:  # noqa: BLE001 - the other reports are still handled
                event(
                    log,
                    logging.ERROR,
                    "status report dead-lettered",
                    message_id=delivery.message_id,
                    routing_key=delivery.routing_key,
                    reason=str(error) or type(error).__name__,
                )
                delivery.reject()
            else:
                all_reports.append((endpoint_id, report))
                readable.append(delivery)
        if not all_reports:
            return
        last = dict(all_reports)
        try:
            with self._database.write() as connection:
                known = endpoints.known_endpoints(connection, last)
                reports = {each: report for each, report in last.items() if each in known}
                if reports:
                    endpoints.record_reports(connection, reports, time.time())
        except SQLAlchemyError as error:
            # A lost report does no harm: the next one follows soon.
            event(log, logging.ERROR, "status reports not stored", reason=error)
        else:
            self._on_stored(reports)
            for unknown in last.keys() - known.keys():
                event(log, logging.WARNING, "status report of an unknown endpoint", id=unknown)
            theirs = [each for each in all_reports if known.get(each[0]) is False]
            if theirs:
                self._on_reports(theirs)
        for delivery in readable:
            delivery.ack()


def _parse(delivery: Delivery) -> tuple[str, dict[str, Any]]:
    message = unpack(delivery.body)
    if not isinstance(message, EPStatusReport):
        raise InvalidMessageError(
            f"expected an ep_status_report, got a {message.message_type} message"
        )
    endpoint_id = str(message.endpoint_id)
    if delivery.routing_key != queues.heartbeats_key(endpoint_id):
        raise InvalidMessageError(f"it names endpoint {endpoint_id}, but its routing key another")
    report: dict[str, Any] = readable(message.global_state)
    return endpoint_id, report
