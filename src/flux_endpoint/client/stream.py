"""Results of one task group, from its queue into futures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from queue import SimpleQueue
from typing import Any

from flux_endpoint.amqp import AmqpConnection, ConnectionState, Consumer, Delivery
from flux_endpoint.amqp.connection import StateChange
from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.backoff import delays
from flux_endpoint.client.future import Accepted, ComputeFuture
from flux_endpoint.client.results import TaskEnd, from_document, from_message, resolve
from flux_endpoint.client.threads import ClientThread, start
from flux_endpoint.errors import InvalidMessageError, ServiceError, ServiceUnreachableError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

#: Results that the broker sends ahead of our acknowledgements; bounds what waits in memory.
PREFETCH = 256
#: Early results that are kept until the submission that they belong to is answered.
MAX_EARLY = PREFETCH // 2
#: Tasks whose state is asked in one request.
STATUS_CHUNK = 128


class ResultStream:
    """The consumer of a task group's queue and the futures that wait for it.

    One thread, the resolver, owns all that is mutable here. The methods that other threads call
    put a message into its inbox; so does the AMQP connection for each delivery. The inbox needs no
    bound of its own: the broker sends no more than `PREFETCH` results ahead.

    A result may arrive before the answer to the submission that tells us its task's id. While a
    submission is under way, results of unknown tasks are kept, unacknowledged; without one they
    belong to another process, and are dropped.

    Results that the queue no longer has (it expired, the broker lost it) are asked of the service:
    after each reconnect, and whenever the broker refuses the consumer.
    """

    def __init__(self, api: ServiceApi, task_group_id: str, amqp_port: int | None) -> None:
        self._api = api
        self._group = task_group_id
        self._amqp_port = amqp_port
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closing = threading.Event()
        # More than one if a task was reloaded before the answer to its submission came.
        self._open: dict[str, tuple[ComputeFuture, ...]] = {}
        self._early: dict[str, tuple[TaskEnd, Delivery]] = {}
        self._dropped_early = False
        self._submissions = 0
        self._connection: AmqpConnection | None = None
        self._consumer: Consumer | None = None
        # Written before the connection is up, read here after.
        self._queue_prefix: str | None = None
        self._queue_exists = False
        self._was_connected = False
        self._troubled = False
        self._refused = False
        self._asking = False
        self._asker: ClientThread | None = None
        self._ask_again = False
        self._stopped = False
        self._resolver = ClientThread(f"results {task_group_id[:8]}", self._run)

    def start(self) -> None:
        """Start the resolver; the connection follows with the first submission."""
        start(self._resolver)

    def submission_begins(self) -> None:
        """Expect results of tasks whose ids are not known yet."""
        self._inbox.put(self._on_begin)

    def submission_ends(self, accepted: list[Accepted]) -> None:
        """End what `submission_begins` began; the ids of `accepted` may be told from now on."""
        self._inbox.put(lambda: self._on_end(accepted))

    def follow(self, futures: list[ComputeFuture]) -> list[ComputeFuture]:
        """Follow tasks that were submitted some other time.

        Returns:
            For each, the future that resolves: one that waits for that task already, or the given.
        """
        answer: Future[list[ComputeFuture]] = Future()
        if threading.current_thread() is self._resolver:
            self._on_follow(futures, answer)
        else:
            self._inbox.put(lambda: self._on_follow(futures, answer))
        return answer.result()

    def close(self) -> None:
        """Close the connection and end the resolver, after what is in its inbox."""
        self._closing.set()
        self._inbox.put(self._on_stop)

    def join(self, timeout: float) -> None:
        """Wait for the end that `close` began."""
        if self._resolver.is_alive() and threading.current_thread() is not self._resolver:
            self._resolver.join(timeout)

    # All below runs on the resolver's thread, unless it says otherwise.

    def _run(self) -> None:
        while not self._stopped:
            handle = self._inbox.get()
            try:
                handle()
            except Exception:
                log.exception("error in the result stream of task group %s", self._group)
        if self._asking and self._asker is not None:
            self._asker.join()

    def _on_begin(self) -> None:
        self._submissions += 1
        self._connect()

    def _on_end(self, accepted: list[Accepted]) -> None:
        self._submissions -= 1
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
        if accepted:
            self._queue_exists = True
            self._connect()
            self._consume()
        # What ended while there was no queue, or no room, is not in the queue of now.
        if self._dropped_early or (accepted and self._refused):
            self._dropped_early = bool(self._submissions)
            self._refused = False
            self._ask_service()

    def _on_follow(self, futures: list[ComputeFuture], answer: Future[list[ComputeFuture]]) -> None:
        answer.set_result([self._open.setdefault(f.task_id or "", (f,))[0] for f in futures])
        self._connect()
        self._queue_exists = True  # or the broker refuses, and we ask the service
        self._consume()
        self._ask_service()

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
            self._dropped_early = True
        if replaced is not None:
            replaced[1].ack()

    def _on_stop(self) -> None:
        self._stopped = True
        if self._connection is not None:
            self._connection.close()

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
        """Ask for a fresh URL. Runs on a thread of its own, before each attempt to connect."""
        url, self._queue_prefix = self._api.result_connection(self._amqp_port)
        return url

    def _tell_state(self, change: StateChange) -> None:
        """Runs on the connection's thread."""
        self._inbox.put(lambda: self._on_state(change))

    def _on_state(self, change: StateChange) -> None:
        if change.state is ConnectionState.CONNECTED:
            if self._troubled:
                event(log, logging.WARNING, f"results: connected to {change.address} again")
            self._troubled = False
            self._consume()
            if self._was_connected:
                self._ask_service()
            self._was_connected = True
        elif change.state is not ConnectionState.CLOSED:
            # Until the broker lets us in again, each attempt to connect is a time to look.
            self._ask_service()
            if self._troubled:
                return
            self._troubled = True
            lost = change.state is ConnectionState.LOST
            what = "lost the connection" if lost else "no connection"
            text = f"results: {what} to {change.address}, trying again: {change.reason}"
            event(log, logging.WARNING, text)

    def _consume(self) -> None:
        ready = self._queue_exists and self._queue_prefix is not None
        if ready and self._consumer is None and self._connection is not None:
            self._consumer = self._connection.consume(
                f"{self._queue_prefix}{self._group}",
                lambda delivery: self._inbox.put(lambda: self._on_delivery(delivery)),
                prefetch=PREFETCH,
                on_refused=lambda reason: self._inbox.put(lambda: self._on_refused(reason)),
            )

    def _on_refused(self, reason: str) -> None:
        level = logging.DEBUG if self._refused else logging.INFO
        self._refused = True
        event(log, level, "no result queue, asking the service", group=self._group, reason=reason)
        self._ask_service()

    # What the queue does not tell, the service does.

    def _ask_service(self) -> None:
        if self._asking:
            self._ask_again = True
            return
        ids = list(self._open)
        if ids and not self._closing.is_set():
            self._asker = ClientThread(f"status {self._group[:8]}", lambda: self._ask(ids))
            self._asking = start(self._asker)

    def _ask(self, ids: list[str]) -> None:
        """Runs on a thread of its own, one at a time."""
        try:
            for chunk in _chunks(ids, STATUS_CHUNK):
                documents = self._ask_patiently(chunk)
                self._inbox.put(lambda d=documents: self._on_documents(d))  # type: ignore[misc]
        except ServiceError as error:
            event(log, logging.WARNING, f"asking for the state of open tasks failed: {error}")
        finally:
            self._inbox.put(self._on_asked)

    def _ask_patiently(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        for delay in delays():
            try:
                return self._api.batch_status(ids)
            except ServiceUnreachableError:
                if self._closing.wait(delay):
                    break
        return {}

    def _on_documents(self, documents: dict[str, dict[str, Any]]) -> None:
        for task_id, document in documents.items():
            end = from_document({**document, "task_id": task_id})
            if end is not None:
                _resolve_all(self._open.pop(task_id, ()), end)

    def _on_asked(self) -> None:
        self._asking = False
        if self._ask_again:
            self._ask_again = False
            self._ask_service()


def _resolve_all(futures: tuple[ComputeFuture, ...], end: TaskEnd) -> None:
    for future in futures:
        resolve(future, end)


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
