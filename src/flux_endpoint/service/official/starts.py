"""When user endpoints are told to start.

That is told whenever one has tasks and nobody takes them from its queue: it never ran, it has
stopped, it vanished, or it has gone deaf. What its runs have taken until then is noted before.
While somebody consumes from the queue it is not told: either it runs, or the broker has not noticed
yet that it does not, and then the new one would find the queue in use and never take a task.
"""

import logging
import random
import time
from dataclasses import dataclass

from flux_endpoint.amqp import AmqpConnection, QueueAdmin
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

#: Seconds between two commands to start the same endpoint: at least, after a first one that did
#: nothing, and at most.
SHORTEST, _FIRST_BACKOFF, _LAST_BACKOFF = 1.0, 10.0, 300.0

#: Seconds that a new run has to subscribe to its queue before it counts as deaf.
DEAF_AFTER = 15.0

# Seconds until another look at a queue that tasks are on their way to.
_LOOK_AGAIN = 0.2
_TIMEOUT = 20.0


@dataclass
class _Attempts:
    last: float
    count: int
    wait: float
    #: More tasks came too soon for another start.
    more: bool = False


class Starts:
    """For the dispatcher's thread.

    Args:
        database: which endpoints there are, and what waits for them.
        connection: the way to the broker.
        queue_admin: tells who consumes.
        runs: what takes from the queues.
        timers: when to look again.
        urls: what an endpoint is told to connect to.
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

    def answered(self, endpoint_id: str) -> None:
        """An endpoint reports: the next start has no silence to be patient about."""
        self._attempts.pop(endpoint_id, None)

    def are_silent(self, endpoint_id: str) -> bool:
        """Return whether there was no answer to a start, so that another was tried."""
        attempts = self._attempts.get(endpoint_id)
        return attempts is not None and attempts.count > 1

    def consider(self, endpoint: Endpoint, *, at_once: bool = False) -> None:
        """Have an endpoint started if that is due; `at_once` if there are new tasks for it."""
        attempts = self._attempts.get(endpoint.id)
        if attempts is not None:
            at_once = at_once or attempts.more
            ago = time.monotonic() - attempts.last
            missing = (SHORTEST if at_once else attempts.wait) - ago
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
            return  # who starts it is not told, but tells
        with self._database.read() as connection:
            parent = endpoints.get_endpoint(connection, endpoint.parent_id)
        if parent is None or not parent.is_online(time.time()):
            return  # its next report brings us back
        made = 0 if attempts is None else attempts.count
        # More tasks for one that is starting are no further failure to start.
        self._start(endpoint, parent, made if at_once and made else made + 1)

    def _start(self, endpoint: Endpoint, parent: Endpoint, count: int) -> None:
        longest = min(_FIRST_BACKOFF * 2.0 ** min(count - 1, 10), _LAST_BACKOFF)
        wait = random.uniform(longest / 2, longest)  # noqa: S311 - jitter
        self._attempts[endpoint.id] = _Attempts(time.monotonic(), count, wait)
        self._timers.set(Due.START, endpoint.id, wait)
        # Its account is of the token that its multi-user endpoint is registered with.
        url = self._urls.of_endpoint(endpoint.id, parent.token_id or "")
        send_start(self._connection, endpoint, url).result(_TIMEOUT)
        event(
            log,
            logging.INFO if count == 1 else logging.WARNING,
            "user endpoint told to start",
            endpoint_id=endpoint.parent_id,
            user_endpoint_id=endpoint.id,
            attempt=count,
        )
