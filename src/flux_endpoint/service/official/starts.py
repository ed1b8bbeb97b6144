"""Decides when to start user endpoints.

A user endpoint is started when it has tasks and its queue has no consumer: it never ran, has
stopped, was lost, or does not consume. The tasks that its runs have taken are recorded first. While
the queue has a consumer, the endpoint is not started. Either it is running, or the broker has not
detected its end yet. In that case a new run would find the queue in use and never take a task.
"""

import logging
import time
from dataclasses import dataclass, field

from flux_endpoint.amqp import AmqpConnection, QueueAdmin
from flux_endpoint.backoff import Backoff
from flux_endpoint.logs import event
from flux_endpoint.protocol import queues
from flux_endpoint.service.access.urls import BrokerUrls
from flux_endpoint.service.official.commands import send_start
from flux_endpoint.service.official.runs import Runs
from flux_endpoint.service.official.store import deliveries
from flux_endpoint.service.official.timers import Due, Timers
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

#: Seconds between two start commands to the same endpoint: minimum, after a first command without
#: effect, and maximum.
_MIN_INTERVAL, _FIRST_BACKOFF, _LAST_BACKOFF = 1.0, 10.0, 300.0

#: Seconds that a new run has to consume from its queue before another start is considered.
CONSUME_TIMEOUT = 15.0

# Seconds until another check of a queue to which tasks are being published.
_LOOK_AGAIN = 0.2
_TIMEOUT = 20.0


@dataclass
class _Attempts:
    #: When the last start command was sent (monotonic clock), and the pause (s) after it.
    last: float = 0.0
    wait: float = 0.0
    #: One pause for each attempt; a start for further tasks does not count as another one.
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_BACKOFF, _LAST_BACKOFF))
    #: Whether further tasks came before another start was permitted.
    more: bool = False

    @property
    def count(self) -> int:
        """Number of attempts."""
        return self.backoff.failures


class Starts:
    """Starts user endpoints. For the dispatcher's thread.

    Args:
        database: the service's database.
        connection: connection to the broker.
        queue_admin: counts the consumers of queues.
        runs: the runs of endpoints.
        timers: the timers for further checks.
        urls: the broker's URLs for endpoints.
    """

    def __init__(
        self,
        database: Database,
        connection: AmqpConnection,
        queue_admin: QueueAdmin,
        runs: Runs,
        timers: Timers,
        *,
        urls: BrokerUrls,
    ) -> None:
        self._database = database
        self._connection = connection
        self._queue_admin = queue_admin
        self._runs = runs
        self._timers = timers
        self._urls = urls
        self._attempts: dict[str, _Attempts] = {}

    def reset_backoff(self, endpoint_id: str) -> None:
        """Reset the backoff of an endpoint that has reported."""
        self._attempts.pop(endpoint_id, None)

    def are_silent(self, endpoint_id: str) -> bool:
        """Return whether an endpoint was started more than once without a report in between."""
        attempts = self._attempts.get(endpoint_id)
        return attempts is not None and attempts.count > 1

    def consider(self, endpoint: Endpoint, *, at_once: bool = False) -> None:
        """Start a user endpoint if necessary, and if the backoff permits.

        Args:
            endpoint: the endpoint.
            at_once: whether it has new tasks, so that only the minimum interval applies.
        """
        attempts = self._attempts.get(endpoint.id)
        if attempts is not None:
            at_once = at_once or attempts.more
            ago = time.monotonic() - attempts.last
            missing = (_MIN_INTERVAL if at_once else attempts.wait) - ago
            attempts.more = at_once and missing > 0
            if missing > 0:
                self._timers.within(Due.START, endpoint.id, missing)
                return
        with self._database.read() as connection:
            if not deliveries.has_open_tasks(connection, endpoint.id):
                self._attempts.pop(endpoint.id, None)
                return
        count = self._queue_admin.count(queues.tasks_queue(endpoint.id)).result(_TIMEOUT)
        ready, consumers = (0, 0) if count is None else (count.messages, count.consumers)
        if consumers:
            return
        if not self._runs.unattended(endpoint, ready, time.time()):
            if attempts is not None:
                attempts.more = at_once
            self._timers.within(Due.START, endpoint.id, _LOOK_AGAIN)
            return
        if endpoint.parent_id is None:
            return  # not a user endpoint: its owner starts it
        with self._database.read() as connection:
            parent = endpoints.get_endpoint(connection, endpoint.parent_id)
        if parent is None or not parent.is_online(time.time()):
            return  # retried after the parent's next report
        if attempts is None:
            attempts = self._attempts[endpoint.id] = _Attempts()
        if not at_once or not attempts.count:
            attempts.wait = next(attempts.backoff)
        self._start(endpoint, parent, attempts)

    def _start(self, endpoint: Endpoint, parent: Endpoint, attempts: _Attempts) -> None:
        attempts.last, attempts.more = time.monotonic(), False
        self._timers.set(Due.START, endpoint.id, attempts.wait)
        # Its account depends on the token with which its multi-user endpoint was registered.
        url = self._urls.of_endpoint(endpoint.id, parent.token_id or "")
        send_start(self._connection, endpoint, url).result(_TIMEOUT)
        event(
            log,
            logging.INFO if attempts.count == 1 else logging.WARNING,
            "start of a user endpoint requested",
            endpoint_id=endpoint.parent_id,
            user_endpoint_id=endpoint.id,
            attempt=attempts.count,
        )
