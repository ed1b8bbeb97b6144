"""Results of one task group, from a queue of our own into futures."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from flux_endpoint.amqp import AmqpConnection, ConnectionState, Consumer, Delivery
from flux_endpoint.amqp.connection import StateChange
from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.backoff import delays
from flux_endpoint.client.endpoint_watch import EndpointState, EndpointWatch, state_from
from flux_endpoint.client.future import Accepted, ComputeFuture
from flux_endpoint.client.results import TaskEnd, from_document, from_message, resolve
from flux_endpoint.client.threads import ClientThread, owner_thread, start
from flux_endpoint.errors import InvalidMessageError, ServiceError, ServiceUnreachableError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

#: Results that the broker sends ahead of our acknowledgements; bounds what waits in memory.
PREFETCH = 256
#: Early results that are kept until the submission that they belong to is answered.
MAX_EARLY = PREFETCH // 2
#: Seconds without a result after which the service is asked whether the endpoints of open tasks are
#: online; at first, and at most. And how many of them, at most.
QUIET, MAX_QUIET, MAX_SILENT = 60.0, 600.0, 16
#: Tasks whose state is asked in one request.
STATUS_CHUNK = 128


class ResultStream:
    """The consumer of its own queue of a task group's results, and the futures that wait for them.

    The queue gets each result of the group, also those that only other clients wait for.

    One thread, the resolver, owns all that is mutable here. The methods that other threads call
    put a message into its inbox; so does the AMQP connection for each delivery. The inbox needs no
    bound of its own: the broker sends no more than `PREFETCH` results ahead.

    A result may arrive before the answer to the submission that tells us its task's id. While a
    submission is under way, results of unknown tasks are kept, unacknowledged; without one they
    belong to another client, and are dropped.

    The queue is opened by the service before each attempt to connect, beside the first submission.
    What ended before, and what a queue that expired or was lost no longer has, is asked of it.
    """

    def __init__(self, api: ServiceApi, task_group_id: str, amqp_port: int | None) -> None:
        self._api = api
        self._group = task_group_id
        self._amqp_port = amqp_port
        self._client_id = str(uuid.uuid4())  # names our queue
        self._closing = threading.Event()
        # More than one if a task was reloaded before the answer to its submission came.
        self._open: dict[str, tuple[ComputeFuture, ...]] = {}
        self._early: dict[str, tuple[TaskEnd, Delivery]] = {}
        self._submissions = 0
        #: Results of a submission that is under way may have been missed.
        self._missed = False
        self._connection: AmqpConnection | None = None
        self._consumer: Consumer | None = None
        self._troubled = False
        self._refused = False
        #: Tasks to ask the service for, and whether it is to open the queue first.
        self._wanted: dict[str, None] = {}
        self._reopen = False
        #: Endpoints to ask about, after so many seconds without a result.
        self._silent: set[str] = set()
        self._quiet = QUIET
        #: Monotonic time at which that is over; infinity: nothing is waited for yet.
        self._quiet_at = math.inf
        self._endpoints = EndpointWatch()
        self._asking = False
        self._asker: ClientThread | None = None
        self._resolver = owner_thread(
            f"results {task_group_id[:8]}",
            f"the result stream of task group {task_group_id}",
            after_turn=self._look_at_the_clock,
            at_end=self._end_asking,
        )

    def start(self) -> None:
        """Start the resolver; the connection follows with the first submission."""
        start(self._resolver)

    def submission_begins(self) -> None:
        """Expect results of tasks whose ids are not known yet."""
        self._resolver.post(self._on_begin)

    def submission_ends(
        self, accepted: list[Accepted], endpoint: EndpointState | None = None
    ) -> None:
        """End what `submission_begins` began; the ids of `accepted` may be told from now on.

        Args:
            accepted: the tasks.
            endpoint: what the service told of their endpoint.
        """
        self._resolver.post(lambda: self._on_end(accepted, endpoint))

    def follow(self, futures: list[ComputeFuture]) -> list[ComputeFuture]:
        """Follow tasks that were submitted some other time.

        Returns:
            For each, the future that resolves: one that waits for that task already, or the given.
        """
        return self._resolver.call(lambda: self._on_follow(futures))

    def close(self) -> None:
        """Close the connection and end the resolver, after what is in its inbox."""
        self._closing.set()
        self._resolver.post(self._on_stop)

    def join(self, timeout: float) -> None:
        """Wait for the end that `close` began."""
        self._resolver.join(timeout)

    # All below runs on the resolver's thread, unless it says otherwise.

    def _look_at_the_clock(self) -> float:
        """Return the seconds until it has been quiet for too long."""
        now = time.monotonic()
        if not self._open:
            self._quiet_at = math.inf
        elif math.isinf(self._quiet_at):
            self._quiet_at = now + self._quiet
        elif now >= self._quiet_at:
            self._on_quiet()
            self._quiet_at = now + self._quiet
        return self._quiet_at - now

    def _end_asking(self) -> None:
        if self._asking and self._asker is not None:
            self._asker.join()

    def _on_begin(self) -> None:
        self._submissions += 1
        self._connect()

    def _on_end(self, accepted: list[Accepted], endpoint: EndpointState | None) -> None:
        self._submissions -= 1
        if endpoint is not None:
            self._endpoints.hear(endpoint)
        for each in accepted:
            each.tell()  # before the future may be done
            early = self._early.pop(each.task_id, None)
            waiting = (each.future, *self._open.pop(each.task_id, ()))
            if early is None:
                self._open[each.task_id] = waiting
            else:
                _resolve_all(waiting, early[0])
                early[1].ack()
        if not self._submissions:
            for _, delivery in self._early.values():
                delivery.ack()
            self._early.clear()
        if self._missed:
            self._missed = bool(self._submissions)
            self._ask_service(each.task_id for each in accepted)

    def _on_follow(self, futures: list[ComputeFuture]) -> list[ComputeFuture]:
        followed = [self._open.setdefault(f.task_id or "", (f,))[0] for f in futures]
        self._connect()
        self._ask_service(future.task_id or "" for future in futures)
        return followed

    def _on_delivery(self, delivery: Delivery) -> None:
        try:
            end = from_message(delivery.body, delivery.timestamp)
        except InvalidMessageError as error:
            what = f"a message for task group {self._group} can't be read, set aside: {error}"
            event(log, logging.ERROR, what, message_id=delivery.message_id)
            delivery.reject()
            return
        waiting = self._open.pop(end.task_id, ())
        if waiting:
            self._quiet, self._quiet_at = QUIET, math.inf
            _resolve_all(waiting, end)
            delivery.ack()
        elif self._submissions:
            self._keep_early(end, delivery)
        else:
            delivery.ack()
            event(log, logging.DEBUG, "result of a task not followed here", task_id=end.task_id)

    def _keep_early(self, end: TaskEnd, delivery: Delivery) -> None:
        replaced = self._early.pop(end.task_id, None)
        self._early[end.task_id] = (end, delivery)
        if replaced is None and len(self._early) > MAX_EARLY:
            # Acknowledge one, or the prefetch fills up; the service still knows its result.
            replaced = self._early.pop(next(iter(self._early)))
            self._missed = True
        if replaced is not None:
            replaced[1].ack()

    def _on_stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._resolver.stop()

    # The connection.

    def _connect(self) -> None:
        if self._connection is None:
            connection = AmqpConnection(
                self._url, name=f"results {self._group[:8]}", on_state=self._tell_state
            )
            with suppress(RuntimeError):  # the interpreter is about to exit
                connection.start()
                self._connection = connection

    def _url(self) -> str:
        """Open the queue. Runs on a thread of its own, before each attempt to connect."""
        url, name = self._open_queue()
        self._resolver.post(lambda: self._on_queue(name))
        return url

    def _open_queue(self) -> tuple[str, str]:
        return self._api.open_queue("results", self._group, self._client_id, self._amqp_port)

    def _on_queue(self, name: str) -> None:
        """From now on the queue gets all results; those of before are asked for."""
        if self._consumer is None and self._connection is not None:
            self._consumer = self._connection.consume(
                name,
                lambda delivery: self._resolver.post(lambda: self._on_delivery(delivery)),
                prefetch=PREFETCH,
                bundles=True,
                on_refused=lambda reason: self._resolver.post(lambda: self._on_refused(reason)),
            )
        self._refused = False
        self._missed = self._missed or bool(self._submissions)
        self._ask_service(self._open)

    def _tell_state(self, change: StateChange) -> None:
        """Runs on the connection's thread."""
        self._resolver.post(lambda: self._on_state(change))

    def _on_state(self, change: StateChange) -> None:
        if change.state is ConnectionState.CONNECTED:
            if self._troubled:
                event(log, logging.WARNING, f"results: connected to {change.address} again")
            self._troubled = False
        elif change.state is not ConnectionState.CLOSED:
            # Until the broker lets us in again, each attempt to connect is a time to look.
            self._ask_service(self._open)
            if self._troubled or not (self._open or self._submissions):
                return  # without a task that waits, it is nobody's trouble
            self._troubled = True
            lost = change.state is ConnectionState.LOST
            what = "lost the connection" if lost else "no connection"
            text = f"results: {what} to {change.address}, trying again: {change.reason}"
            event(log, logging.WARNING, text)

    def _on_refused(self, reason: str) -> None:
        level = logging.DEBUG if self._refused else logging.INFO
        event(log, level, "no result queue, opening it again", group=self._group, reason=reason)
        self._refused = self._reopen = True
        self._ask_service(self._open)

    # What the queue does not tell, the service does.

    def _on_quiet(self) -> None:
        """Nothing has come for a while: is there anybody who could send it?"""
        self._quiet = min(2 * self._quiet, MAX_QUIET)
        waited_for = (future.endpoint_id for each in self._open.values() for future in each)
        self._silent = set(islice({id_ for id_ in waited_for if id_}, MAX_SILENT))
        self._ask_service()

    def _ask_service(self, ids: Iterable[str] = ()) -> None:
        self._wanted.update(dict.fromkeys(ids))
        if self._asking or self._closing.is_set():
            return
        wanted = [task_id for task_id in self._wanted if task_id in self._open]
        reopen, self._reopen = self._reopen, False
        silent, self._silent = self._silent, set()
        self._wanted.clear()
        if wanted or reopen or silent:
            ask = partial(self._ask, wanted, silent, reopen=reopen)
            self._asker = ClientThread(f"status {self._group[:8]}", ask)
            self._asking = start(self._asker)

    def _ask(self, ids: list[str], endpoints: set[str], *, reopen: bool) -> None:
        """Runs on a thread of its own, one at a time."""
        try:
            for endpoint_id in endpoints:
                answer = self._patiently(partial(self._api.endpoint_status, endpoint_id)) or {}
                state = state_from(endpoint_id, answer.get("status"), answer.get("last_seen"))
                if state is not None:
                    self._resolver.post(partial(self._endpoints.hear, state))
            if reopen and (opened := self._patiently(self._open_queue)):
                self._resolver.post(lambda: self._on_queue(opened[1]))
            for chunk in _chunks(ids, STATUS_CHUNK):
                documents = self._patiently(partial(self._api.batch_status, chunk)) or {}
                self._resolver.post(partial(self._on_documents, documents))
        except ServiceError as error:
            event(log, logging.WARNING, f"asking for the state of open tasks failed: {error}")
        finally:
            self._resolver.post(self._on_asked)

    def _patiently(self, call: Callable[[], _Answer]) -> _Answer | None:
        for delay in delays():
            try:
                return call()
            except ServiceUnreachableError:
                if self._closing.wait(delay):
                    break
        return None

    def _on_documents(self, documents: dict[str, dict[str, Any]]) -> None:
        for task_id, document in documents.items():
            end = from_document({**document, "task_id": task_id})
            if end is not None:
                _resolve_all(self._open.pop(task_id, ()), end)

    def _on_asked(self) -> None:
        self._asking = False
        self._ask_service()


def _resolve_all(futures: tuple[ComputeFuture, ...], end: TaskEnd) -> None:
    for future in futures:
        resolve(future, end)


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
