"""Reports to the service that a user endpoint could not be started."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.endpoint.outbox import PublishTarget
from flux_endpoint.logs import event
from flux_endpoint.protocol.messages import EPStatusReport, pack
from flux_endpoint.protocol.queues import EndpointQueues

log = logging.getLogger(__name__)

#: The most reports that wait; the service asks again for what it hears nothing of.
_MOST_WAITING = 100
_CONNECT_TIMEOUT, _CONFIRM_TIMEOUT = 10.0, 5.0
_LONGEST_REASON = 8000


class FailureReporter:
    """Sends each report with the account of the user endpoint, on a thread of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="failures")
        self._room = threading.BoundedSemaphore(_MOST_WAITING)

    def report(self, queues: EndpointQueues, reason: str) -> None:
        """Report why a user endpoint was not started; returns at once.

        Args:
            queues: how the user endpoint would have reached the broker.
            reason: a text for the user.
        """
        if not self._room.acquire(blocking=False):
            event(log, logging.WARNING, "failure not reported: many are", reason=reason)
            return
        self._pool.submit(self._send, queues, reason[:_LONGEST_REASON])

    def close(self) -> None:
        """Finish the report that is being sent, and drop the others: the service asks again."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _send(self, queues: EndpointQueues, reason: str) -> None:
        state = {"error": reason, "heartbeat_period": 3}
        report = EPStatusReport(
            endpoint_id=UUID(queues.endpoint_id), global_state=state, task_statuses={}
        )
        url = queues.task_queue_info.connection_url
        try:
            with AmqpConnection(url, name=f"failure of {queues.endpoint_id}") as connection:
                connection.wait_connected(_CONNECT_TIMEOUT)
                target = PublishTarget(queues.heartbeat_queue_info)
                target.publish(connection, pack(report)).result(_CONFIRM_TIMEOUT)
        except Exception as error:  # noqa: BLE001 - the service asks again
            event(log, logging.WARNING, "failure not reported", reason=reason, because=repr(error))
        finally:
            self._room.release()
