"""The thread that manages official endpoints, and cleans up after deleted endpoints.

One thread does both. Otherwise the cleanup after a deletion could delete the queues of an endpoint
that was registered again in the meantime.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable

from flux_endpoint.amqp import AmqpConnection, QueueAdmin
from flux_endpoint.logs import event
from flux_endpoint.owner_thread import OwnerThread
from flux_endpoint.protocol import queues
from flux_endpoint.service.access.urls import BrokerUrls
from flux_endpoint.service.official.inbox import (
    BrokerConnected,
    EndpointRegistered,
    EndpointReported,
    EndpointsDeleted,
    EndpointStopping,
    Item,
    Posted,
    TasksEnded,
    TasksReady,
    coalesced,
)
from flux_endpoint.service.official.releases import STALE_CLAIM, Releases
from flux_endpoint.service.official.runs import Runs
from flux_endpoint.service.official.starts import CONSUME_TIMEOUT, Starts
from flux_endpoint.service.official.store import deliveries, runs, user_endpoints
from flux_endpoint.service.official.timers import Due, Timers
from flux_endpoint.service.removal import Removal
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

#: Seconds between two checks of all endpoints with open tasks.
SWEEP_PERIOD = STALE_CLAIM

_RETRY = 5.0
_TIMEOUT = 20.0
_ALL = ""  # key of timers that are not for a specific endpoint


class Dispatcher:
    """Manages official endpoints on its own thread. Safe to use from several threads.

    Args:
        database: the service's database.
        connection: connection to the broker.
        urls: the broker's URLs for endpoints.
        window: maximum number of open tasks that an endpoint is given (see `Releases`).
    """

    def __init__(
        self, database: Database, connection: AmqpConnection, urls: BrokerUrls, window: int
    ) -> None:
        self._database = database
        #: Items since the last turn of the thread.
        self._posted: list[Posted] = []
        self._connected = threading.Event()
        self._thread = OwnerThread("dispatcher", after_turn=self._turn, at_end=self._last_turn)
        # Only the thread uses these:
        self._queue_admin = QueueAdmin(connection)
        self._timers = Timers()
        self._releases = Releases(database, connection, self._timers, window, self.post)
        self._runs = Runs(database, connection, self._queue_admin, self._timers)
        self._starts = Starts(
            database,
            connection,
            self._queue_admin,
            self._runs,
            self._timers,
            urls=urls,
        )
        self._removal = Removal(database, connection, self._queue_admin, deliveries.remove)

    def start(self) -> None:
        """Start the thread. It does nothing until the broker is connected."""
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop, within `timeout` seconds.

        The connection must be closed first, so that no confirm is outstanding.
        """
        self._thread.stop()
        self._thread.join(timeout)

    def connected(self) -> None:
        """Record that the connection to the broker was made."""
        self._connected.set()
        self.post(BrokerConnected())

    def disconnected(self) -> None:
        """Record that the connection to the broker was lost."""
        self._connected.clear()

    def post(self, item: Posted) -> None:
        """Post an event to the thread."""
        self._thread.post(lambda: self._posted.append(item))

    # The following methods run on the thread.

    def _turn(self) -> float:
        for item in self._take():
            self._handle_safely(item)
        if not self._connected.is_set():
            return math.inf
        for due, endpoint_id in self._timers.take():
            self._on_timer(due, endpoint_id)
        wait = self._timers.wait()
        return math.inf if wait is None else wait

    def _last_turn(self) -> None:
        for item in self._take():
            if not isinstance(item, TasksReady | TasksEnded):  # release no more tasks
                self._handle_safely(item)

    def _take(self) -> list[Item]:
        posted, self._posted = self._posted, []
        return coalesced(posted)

    def _handle_safely(self, item: Item) -> None:
        try:
            self._handle(item)
        except Exception as error:  # noqa: BLE001 - timers below schedule a retry
            self._failed(error)
            if isinstance(item, EndpointRegistered | EndpointStopping):
                item.done.set_exception(error)
            elif isinstance(item, tuple):
                self._timers.within(Due.RELEASE, item[0].endpoint_id, _retry_delay())
            elif isinstance(item, EndpointsDeleted | BrokerConnected):
                self._timers.set(Due.EMPTY, _ALL, _retry_delay())
                self._timers.set(Due.SWEEP, _ALL, _retry_delay())
            elif isinstance(item, TasksReady):
                self._timers.within(Due.RELEASE, item.endpoint_id, _retry_delay())
                self._timers.within(Due.START, item.endpoint_id, _retry_delay())
            elif isinstance(item, TasksEnded):
                for each in item.endpoint_ids:
                    self._timers.within(Due.RELEASE, each, _retry_delay())

    def _on_timer(self, due: Due, endpoint_id: str) -> None:
        try:
            self._run_timer(due, endpoint_id)
        except Exception as error:  # noqa: BLE001 - retried by a timer
            self._failed(error)
            self._timers.within(due, endpoint_id, _retry_delay())

    def _failed(self, error: Exception) -> None:
        # Failures are expected without a connection; the next one resumes all work.
        level = logging.WARNING if self._connected.is_set() else logging.DEBUG
        event(log, level, "processing of official endpoints failed, retrying", reason=repr(error))

    def _handle(self, item: Item) -> None:
        match item:
            case tuple():
                self._releases.settle(item)
            case TasksEnded():
                for endpoint_id in item.endpoint_ids:
                    self._release(endpoint_id)
            case TasksReady():
                self._release(item.endpoint_id)
                self._start(item.endpoint_id, at_once=True)
            case EndpointReported():
                self._take_report(item)
            case EndpointRegistered():
                self._prepare(item.endpoint_id)
                item.done.set_result(None)
            case EndpointStopping():
                self._queue_admin.delete(queues.commands_queue(item.endpoint_id)).result(_TIMEOUT)
                self._releases.forget_queues()
                item.done.set_result(None)
            case EndpointsDeleted():
                self._empty()
            case BrokerConnected():
                self._resume()

    def _run_timer(self, due: Due, endpoint_id: str) -> None:
        if due is Due.EMPTY:
            self._empty()
        elif due is Due.SWEEP:
            self._sweep()
        elif due is Due.RELEASE:
            self._release(endpoint_id)
        elif due is Due.START:
            self._start(endpoint_id)
        else:
            self._follow(due, endpoint_id)

    def _follow(self, due: Due, endpoint_id: str) -> None:
        endpoint = self._endpoint(endpoint_id)
        if endpoint is None:
            return
        if due is Due.SETTLE:
            self._runs.settle(endpoint, time.time())
            is_known = True
        elif due is Due.LOOK:
            is_known = self._runs.inspect(endpoint, time.time())
        else:
            is_known = self._runs.expire(endpoint, time.time())
        if is_known:  # the rest of its queue waits for the next run
            self._release(endpoint_id)
            self._start(endpoint_id, at_once=True)

    def _release(self, endpoint_id: str) -> None:
        endpoint = self._endpoint(endpoint_id)
        if endpoint is not None and self._connected.is_set():
            self._releases.release(endpoint)

    def _start(self, endpoint_id: str, *, at_once: bool = False) -> None:
        endpoint = self._endpoint(endpoint_id)
        if endpoint is not None and self._connected.is_set():
            self._starts.consider(endpoint, at_once=at_once)

    def _take_report(self, item: EndpointReported) -> None:
        endpoint = self._endpoint(item.endpoint_id)
        if endpoint is None:
            return
        now = time.time()
        if endpoint.starts_user_endpoints:
            stops = endpoints.heartbeat_period(item.report) <= 0
            for each in self._user_endpoints(endpoint.id):
                if stops:
                    self._runs.parent_stops(each, now)
                else:
                    self._starts.consider(each)
            return
        silent = self._starts.are_silent(endpoint.id)
        self._runs.report(endpoint, item.report, now, silent_starts=silent)
        if not item.report.get("error"):
            self._starts.reset_backoff(endpoint.id)
            self._timers.within(Due.START, endpoint.id, CONSUME_TIMEOUT)
            self._release(endpoint.id)  # its capacity may have grown

    def _prepare(self, endpoint_id: str) -> None:
        endpoint = self._endpoint(endpoint_id)
        if endpoint is None:
            return
        # A pending cleanup may have deleted its queues after the registration declared them.
        self._releases.declare(endpoint_id)
        if endpoint.starts_user_endpoints:
            # Waiting commands may be too old for it; `reset_backoff` allows new ones at once.
            self._queue_admin.purge(queues.commands_queue(endpoint_id)).result(_TIMEOUT)
            for each in self._user_endpoints(endpoint_id):
                self._starts.reset_backoff(each.id)
        else:
            self._runs.expire(endpoint, time.time(), at_once=True)

    def _resume(self) -> None:
        self._releases.forget_queues()
        self._resume_all(self._runs.resume)
        self._empty()

    def _sweep(self) -> None:
        """Take over claims of services that have stopped, and look for runs without a report."""
        self._releases.sweep()
        self._resume_all(self._runs.watch)

    def _resume_all(self, follow: Callable[[Endpoint, float], None]) -> None:
        with self._database.read() as connection:
            running = runs.running_endpoints(connection)
            busy = deliveries.busy_endpoints(connection)
        for endpoint_id in running:
            endpoint = self._endpoint(endpoint_id)
            if endpoint is not None:
                follow(endpoint, time.time())
        for endpoint_id in busy:
            self._timers.within(Due.RELEASE, endpoint_id, 0)
            self._timers.within(Due.START, endpoint_id, 0)
        self._timers.within(Due.SWEEP, _ALL, SWEEP_PERIOD)

    def _empty(self) -> None:
        self._removal.empty_all()
        self._releases.forget_queues()

    def _endpoint(self, endpoint_id: str) -> Endpoint | None:
        with self._database.read() as connection:
            return endpoints.get_endpoint(connection, endpoint_id)

    def _user_endpoints(self, parent_id: str) -> list[Endpoint]:
        with self._database.read() as connection:
            ids = user_endpoints.user_endpoints_of(connection, parent_id)
            found = [endpoints.get_endpoint(connection, each) for each in ids]
        return [each for each in found if each is not None]


def _retry_delay() -> float:
    return random.uniform(_RETRY / 2, _RETRY)  # noqa: S311 - jitter
