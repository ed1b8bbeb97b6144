"""The thread that looks after endpoints of other makes, and after deleted ones."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from flux_endpoint.amqp import AmqpConnection, QueueAdmin
from flux_endpoint.errors import AmqpError
from flux_endpoint.logs import event
from flux_endpoint.owner_thread import OwnerThread
from flux_endpoint.protocol import queues
from flux_endpoint.service.access.urls import BrokerUrls
from flux_endpoint.service.errors import broker_unavailable
from flux_endpoint.service.official.releases import STALE_CLAIM, Published, Releases
from flux_endpoint.service.official.runs import Runs
from flux_endpoint.service.official.starts import DEAF_AFTER, Starts
from flux_endpoint.service.official.timers import Due, Timers
from flux_endpoint.service.removal import Removal
from flux_endpoint.service.store import deliveries, endpoints, user_endpoints
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

#: Seconds between two looks at all endpoints with open tasks, whatever was told of them.
SWEEP_PERIOD = STALE_CLAIM

_RETRY = 5.0
_TIMEOUT = 20.0
_ALL = ""  # stands for no endpoint in particular


@dataclass(frozen=True)
class _Ready:
    """An endpoint has new tasks."""

    endpoint_id: str


@dataclass(frozen=True)
class _Ended:
    """Tasks of these endpoints have ended."""

    endpoint_ids: frozenset[str]


@dataclass(frozen=True)
class _Reported:
    endpoint_id: str
    report: Mapping[str, Any]


@dataclass(frozen=True)
class _Registered:
    """An endpoint was registered, and is about to start."""

    endpoint_id: str
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class _Stopped:
    """A multi-user endpoint is to stop."""

    endpoint_id: str
    done: Future[None] = field(default_factory=Future)


class _Deleted:
    """Endpoints were deleted."""


class _Connected:
    """The connection to the broker was made."""


_Posted = _Ready | _Ended | _Reported | _Registered | _Stopped | _Deleted | _Connected | Published
_Item = _Posted | tuple[Published, ...]


class Dispatcher:
    """Its methods are for any thread; what they ask for happens on its own.

    Args:
        database: endpoints, and what waits for them.
        connection: the way to the broker.
        urls: what endpoints are told to connect to.
        window: see `Releases`.
    """

    def __init__(
        self, database: Database, connection: AmqpConnection, urls: BrokerUrls, window: int
    ) -> None:
        self._database = database
        #: What has come since the last turn.
        self._posted: list[_Posted] = []
        self._connected = threading.Event()
        self._thread = OwnerThread("dispatcher", after_turn=self._turn, at_end=self._last_turn)
        # The thread's own:
        self._queue_admin = QueueAdmin(connection)
        self._timers = Timers()
        self._releases = Releases(database, connection, self._timers, window, self._post)
        self._runs = Runs(database, connection, self._queue_admin, self._timers)
        self._starts = Starts(
            database,
            connection,
            self._queue_admin,
            self._runs,
            self._timers,
            urls=urls,
        )
        self._removal = Removal(database, connection, self._queue_admin)

    def start(self) -> None:
        """Begin; work begins with the connection."""
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop; the connection must be closed first, so that its confirms have all come."""
        self._thread.stop()
        self._thread.join(timeout)

    def connected(self) -> None:
        """Tell that the connection to the broker was made."""
        self._connected.set()
        self._post(_Connected())

    def disconnected(self) -> None:
        """Tell that the connection to the broker was lost."""
        self._connected.clear()

    def ready(self, endpoint_id: str) -> None:
        """Tell that tasks of an endpoint may be given to it."""
        self._post(_Ready(endpoint_id))

    def ended(self, endpoint_ids: frozenset[str]) -> None:
        """Tell that tasks of endpoints have ended: there may be room for others."""
        self._post(_Ended(endpoint_ids))

    def reported(self, reports: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Tell what endpoints have reported, in the order in which it came."""
        for endpoint_id, report in reports:
            self._post(_Reported(endpoint_id, report))

    def registered(self, endpoint_id: str, timeout: float) -> None:
        """Prepare for the start of an endpoint that is being registered, within `timeout`."""
        item = _Registered(endpoint_id)
        self._post(item)
        try:
            item.done.result(timeout)
        except Exception as error:  # noqa: BLE001 - it can start all the same
            event(log, logging.WARNING, "endpoint not prepared", id=endpoint_id, reason=error)

    def stopped(self, endpoint_id: str, timeout: float) -> None:
        """Have a multi-user endpoint stop, which it does when its command queue is gone.

        Raises:
            ServiceError: 503, the broker did not do it within `timeout`.
        """
        item = _Stopped(endpoint_id)
        self._post(item)
        try:
            item.done.result(timeout)
        except (AmqpError, TimeoutError) as error:
            raise broker_unavailable() from error

    def deleted(self) -> None:
        """Tell that endpoints were deleted."""
        self._post(_Deleted())

    def _post(self, item: _Posted) -> None:
        self._thread.post(lambda: self._posted.append(item))

    # What follows runs on the thread.

    def _turn(self) -> float:
        for item in self._take():
            self._guarded(item)
        if not self._connected.is_set():
            return math.inf
        for due, endpoint_id in self._timers.take():
            self._due(due, endpoint_id)
        wait = self._timers.wait()
        return math.inf if wait is None else wait

    def _last_turn(self) -> None:
        for item in self._take():
            if not isinstance(item, _Ready | _Ended):  # nothing more is released
                self._guarded(item)

    def _take(self) -> list[_Item]:
        posted, self._posted = self._posted, []
        return _coalesced(posted)

    def _guarded(self, item: _Item) -> None:
        try:
            self._handle(item)
        except Exception as error:  # noqa: BLE001 - what it concerned is looked at again
            self._failed(error)
            if isinstance(item, _Registered | _Stopped):
                item.done.set_exception(error)
            elif isinstance(item, tuple):
                self._timers.within(Due.RELEASE, item[0].endpoint_id, _soon())
            elif isinstance(item, _Deleted | _Connected):
                self._timers.set(Due.EMPTY, _ALL, _soon())
                self._timers.set(Due.SWEEP, _ALL, _soon())
            elif isinstance(item, _Ready):
                self._timers.within(Due.RELEASE, item.endpoint_id, _soon())
                self._timers.within(Due.START, item.endpoint_id, _soon())
            elif isinstance(item, _Ended):
                for each in item.endpoint_ids:
                    self._timers.within(Due.RELEASE, each, _soon())

    def _due(self, due: Due, endpoint_id: str) -> None:
        try:
            self._come_back(due, endpoint_id)
        except Exception as error:  # noqa: BLE001 - see above
            self._failed(error)
            self._timers.within(due, endpoint_id, _soon())

    def _failed(self, error: Exception) -> None:
        # Without a connection there is nothing to be told: it brings everything back.
        level = logging.WARNING if self._connected.is_set() else logging.DEBUG
        event(log, level, "endpoints not looked after, retrying", reason=repr(error))

    def _handle(self, item: _Item) -> None:
        match item:
            case tuple():
                self._releases.settle(item)
            case _Ended():
                for endpoint_id in item.endpoint_ids:
                    self._release(endpoint_id)
            case _Ready():
                self._release(item.endpoint_id)
                self._start(item.endpoint_id, at_once=True)
            case _Reported():
                self._take_report(item)
            case _Registered():
                self._prepare(item.endpoint_id)
                item.done.set_result(None)
            case _Stopped():
                self._queue_admin.delete(queues.commands_queue(item.endpoint_id)).result(_TIMEOUT)
                self._releases.forget_queues()
                item.done.set_result(None)
            case _Deleted():
                self._empty()
            case _Connected():
                self._resume()

    def _come_back(self, due: Due, endpoint_id: str) -> None:
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
            told = True
        elif due is Due.LOOK:
            told = self._runs.look(endpoint, time.time())
        else:
            told = self._runs.expire(endpoint, time.time())
        if told:  # what is still in its queue waits for the next run
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

    def _take_report(self, item: _Reported) -> None:
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
            self._starts.answered(endpoint.id)
            self._timers.within(Due.START, endpoint.id, DEAF_AFTER)
            self._release(endpoint.id)  # it may be able to run more than it was

    def _prepare(self, endpoint_id: str) -> None:
        endpoint = self._endpoint(endpoint_id)
        if endpoint is None:
            return
        # The queues that its registration found may have been those of its deletion, here, since.
        self._releases.declare(endpoint_id)
        if endpoint.starts_user_endpoints:
            # Commands that have waited for it are too old for it by now, or will be.
            self._queue_admin.purge(queues.commands_queue(endpoint_id)).result(_TIMEOUT)
            for each in self._user_endpoints(endpoint_id):
                self._starts.answered(each.id)
        else:
            self._runs.expire(endpoint, time.time(), at_once=True)

    def _resume(self) -> None:
        self._releases.forget_queues()
        self._look_after_all(self._runs.resume)
        self._empty()

    def _sweep(self) -> None:
        """Take up what is nobody's: of a service that has ended, or of a run never heard of."""
        self._releases.sweep()
        self._look_after_all(self._runs.watch)

    def _look_after_all(self, follow: Callable[[Endpoint, float], None]) -> None:
        with self._database.read() as connection:
            running = endpoints.running_endpoints(connection)
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


def _coalesced(items: Sequence[_Posted]) -> list[_Item]:
    """Look at an endpoint once for all the results and submissions that have come meanwhile."""
    published = tuple(each for each in items if isinstance(each, Published))
    ended = [each.endpoint_ids for each in items if isinstance(each, _Ended)]
    ready = dict.fromkeys(each for each in items if isinstance(each, _Ready))
    others = [each for each in items if not isinstance(each, Published | _Ended | _Ready)]
    return [
        *([published] if published else []),
        *others,
        *([_Ended(frozenset[str]().union(*ended))] if ended else []),
        *ready,
    ]


def _soon() -> float:
    return random.uniform(_RETRY / 2, _RETRY)  # noqa: S311 - jitter
