"""Publishes tasks to the broker with confirms; an outbox publishes the rest later.

A task is stored before it is published. A submission without all confirms stays marked in the
database, and is published again when the connection is back or the service starts. So no accepted
task is lost if this process or the broker dies. An endpoint drops duplicates.
"""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.backoff import Backoff
from flux_endpoint.errors import AmqpError, PublishError
from flux_endpoint.logs import event
from flux_endpoint.owner_thread import OwnerThread
from flux_endpoint.service import topology
from flux_endpoint.service.countdown import Countdown, pass_on
from flux_endpoint.service.official import OfficialEndpoints
from flux_endpoint.service.room import Room
from flux_endpoint.service.store import endpoints, functions, tasks
from flux_endpoint.service.store.engine import Database, chunks
from flux_endpoint.service.task_message import publish_tasks

log = logging.getLogger(__name__)

# Maximum number of unconfirmed submissions, and of bytes of their arguments. A request that exceeds
# them leaves its tasks to the outbox.
_MAX_WAITING = 64
_MAX_WAITING_BYTES = 128 * 2**20
# Number of submissions read from the database at a time.
_OUTBOX_PAGE = 20
# First and longest pause (s) before unpublished tasks are published again.
_PAUSES = 1.0, 30.0
_DECLARE_TIMEOUT = 30.0
# Seconds after which a group's queue is declared again, in case the broker has lost it.
_DECLARED_FOR = 600.0
_MAX_DECLARED = 10_000


@dataclass
class _Outgoing:
    """A submission, and those of its tasks that are to be published."""

    submission: tasks.Submission
    new: Sequence[tasks.NewTask]
    code: dict[str, functions.Code]
    #: Maximum number of tasks that the endpoint accepts in one message.
    together: int = 1
    done: Future[None] = field(default_factory=Future)

    @property
    def size(self) -> int:
        """Number of characters of the arguments."""
        return sum(len(task.payload) for task in self.new)


@dataclass(frozen=True)
class _Message:
    """A message that is not a task: published once, without a retry."""

    exchange: str
    routing_key: str
    body: bytes
    headers: Mapping[str, object] | None
    expiration: float | None
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class _Declared:
    """The queue of a submission's task group was declared, unless there is an `error`."""

    outgoing: _Outgoing
    error: BaseException | None


@dataclass(frozen=True)
class _Confirmed:
    submission_id: str
    error: BaseException | None


class _Wake:
    """Look for unpublished submissions in the database."""


class _Restart(_Wake):
    """Declare all queues first, since the broker may have lost them; then do as for `_Wake`."""


_Item = _Outgoing | _Message | _Declared | _Confirmed | _Wake


class TaskPublisher:
    """Publishes tasks on its own thread. Safe to use from several threads.

    Args:
        database: the service's database.
        connection: connection to the broker.
        official: holds back the tasks of official endpoints, which are not published here.
    """

    def __init__(
        self, database: Database, connection: AmqpConnection, official: OfficialEndpoints
    ) -> None:
        self._database = database
        self._connection = connection
        self._official = official
        self._room = Room(_MAX_WAITING, _MAX_WAITING_BYTES)
        self._connected = threading.Event()
        self._thread = OwnerThread("task-publisher", after_turn=self._turn, at_end=self._last_turn)
        # Only the thread uses these:
        #: Items since the last turn of the thread.
        self._posted: list[_Item] = []
        self._in_flight: dict[str, _Outgoing] = {}
        self._declared: dict[str, tuple[float, Future[None]]] = {}
        #: Whether the database has more submissions than fitted into memory.
        self._more = False
        self._retry_at: float | None = None
        self._pauses = Backoff(*_PAUSES)

    def start(self) -> None:
        """Begin; tasks that an earlier service left unpublished go first."""
        self._thread.start()

    def connected(self) -> None:
        """Record that the connection to the broker was made."""
        self._connected.set()
        self._post(_Restart())

    def disconnected(self) -> None:
        """Record that the connection to the broker was lost."""
        self._connected.clear()

    def publish(
        self,
        submission: tasks.Submission,
        new: Sequence[tasks.NewTask],
        code: dict[str, functions.Code],
        timeout: float,
        together: int = 1,
    ) -> bool:
        """Publish a stored submission.

        Tasks that are not confirmed in time are published later. With `create_queue`, the queue of
        the task group exists if the return value is true.

        Args:
            submission: the submission.
            new: its tasks.
            code: the code of functions, by function id.
            timeout: time limit in seconds.
            together: maximum number of tasks that the endpoint accepts in one message.

        Returns:
            Whether the broker has confirmed all tasks within `timeout`.
        """
        deadline = time.monotonic() + timeout
        if not self._connected.wait(timeout):
            return False  # `connected` wakes the outbox
        outgoing = _Outgoing(submission, new, code, together)
        size = outgoing.size
        if not self._room.acquire(size, max(deadline - time.monotonic(), 0)):
            self._post(_Wake())
            return False
        outgoing.done.add_done_callback(lambda _: self._room.release(size))
        self._post(outgoing)
        try:
            outgoing.done.result(timeout=max(deadline - time.monotonic(), 0))
        except Exception as error:  # noqa: BLE001 - logged and retried elsewhere
            event(log, logging.DEBUG, "submission published later", reason=error)
            return False
        return True

    def send(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        timeout: float,
        *,
        headers: Mapping[str, object] | None = None,
        expiration: float | None = None,
    ) -> None:
        """Publish one message and wait for its confirm.

        Args:
            exchange: the exchange.
            routing_key: the routing key.
            body: the message.
            timeout: time limit in seconds.
            headers: headers of the message.
            expiration: seconds after which the broker drops the message; `None`: it keeps it.

        Raises:
            UnroutableError: no queue gets the message.
            AmqpError: the broker has not confirmed it in time; it may still arrive.
        """
        deadline = time.monotonic() + timeout
        if not self._connected.wait(timeout):
            raise AmqpError("there is no connection to the message broker")
        if not self._room.acquire(len(body), max(deadline - time.monotonic(), 0)):
            raise AmqpError("too many messages are waiting for the message broker")
        message = _Message(exchange, routing_key, body, headers, expiration)
        message.done.add_done_callback(lambda _: self._room.release(len(body)))
        self._post(message)
        try:
            message.done.result(timeout=max(deadline - time.monotonic(), 0))
        except TimeoutError as error:
            raise AmqpError(f"the message broker did not answer in {timeout} s") from error

    def declare(self, things: Sequence[topology.Declaration], timeout: float) -> bool:
        """Declare queues and bindings.

        Args:
            things: the declarations.
            timeout: time limit in seconds.

        Returns:
            Whether the broker has confirmed them in time.
        """
        deadline = time.monotonic() + timeout
        if not self._connected.wait(timeout):
            return False
        try:
            declared = self._connection.declare_once(*things)
            declared.result(timeout=max(deadline - time.monotonic(), 0))
        except Exception as error:  # noqa: BLE001 - after any error they may not exist
            event(log, logging.ERROR, "queues not declared", reason=error)
            return False
        return True

    def close(self, timeout: float = 5.0) -> None:
        """Stop, within `timeout` seconds.

        The connection must be closed first, so that no confirm is outstanding.
        """
        self._thread.stop()
        self._thread.join(timeout)

    def _post(self, item: _Item) -> None:
        self._thread.post(lambda: self._posted.append(item))

    # The following methods run on the thread.

    def _turn(self) -> float:
        items, self._posted = self._posted, []
        if self._retry_at is not None and time.monotonic() >= self._retry_at:
            self._retry_at = None
            items.append(_Restart())
        try:
            self._handle(items)
        except Exception as error:
            log.exception("publishing failed")
            self._give_up(items, error)
            self._retry_later(error)
        return math.inf if self._retry_at is None else self._retry_at - time.monotonic()

    def _last_turn(self) -> None:
        self._settle(self._posted)

    def _give_up(self, items: list[_Item], error: Exception) -> None:
        """Resolve the futures of unsent items with `error`; the outbox publishes the tasks."""
        for item in items:
            sent = isinstance(item, _Outgoing) and item.submission.id in self._in_flight
            if isinstance(item, _Outgoing | _Message) and not sent and not item.done.done():
                item.done.set_exception(error)

    def _handle(self, items: list[_Item]) -> None:
        restart = any(isinstance(item, _Restart) for item in items)
        if restart:
            self._declared.clear()
        self._settle(items)
        for item in items:
            if isinstance(item, _Outgoing):
                self._send(item)
            elif isinstance(item, _Message):
                self._send_message(item)
            elif isinstance(item, _Declared):
                self._publish_all(item.outgoing, item.error)
        if restart:
            self._declare_endpoints()
        if any(isinstance(item, _Wake) for item in items):
            self._send_stored()

    def _settle(self, items: list[_Item]) -> None:
        confirmed = [item for item in items if isinstance(item, _Confirmed)]
        if not confirmed:
            return
        settled = [
            (item, self._in_flight.pop(item.submission_id))
            for item in confirmed
            if item.submission_id in self._in_flight
        ]
        published = [item.submission_id for item in confirmed if item.error is None]
        try:
            if published:
                with self._database.write() as connection:
                    tasks.mark_published(connection, published)
        except SQLAlchemyError as error:  # they will be published twice, which is harmless
            self._retry_later(error)
        for item, outgoing in settled:
            if item.error is None and not outgoing.new:
                self._official.submission_published(outgoing.submission.endpoint_id)
        for item in confirmed:
            if item.error is not None:
                self._declared.clear()
                self._retry_later(item.error)
                return
        if published:
            self._pauses.reset()
            if self._more:
                self._post(_Wake())

    def _retry_later(self, error: BaseException) -> None:
        pause = next(self._pauses)
        self._retry_at = time.monotonic() + pause
        event(log, logging.WARNING, "tasks not published", reason=error, retry_in=round(pause, 1))

    def _declare_endpoints(self) -> None:
        with self._database.read() as connection:
            known = endpoints.endpoint_ids(connection)
        for part in chunks(known):
            things = [thing for each in part for thing in topology.of_endpoint(each)]
            self._connection.declare_once(*things).result(timeout=_DECLARE_TIMEOUT)

    def _send(self, outgoing: _Outgoing) -> None:
        submission = outgoing.submission
        already = self._in_flight.get(submission.id)
        if already is not None:  # the outbox is publishing it already
            already.done.add_done_callback(partial(pass_on, outgoing.done))
            return
        self._in_flight[submission.id] = outgoing
        # The queue is declared first: without it a result would reach no client.
        declared = self._group_declared(submission)
        if declared is None:
            self._publish_all(outgoing, None)
        else:
            declared.add_done_callback(
                lambda done: self._post(_Declared(outgoing, done.exception()))
            )

    def _send_message(self, message: _Message) -> None:
        try:
            confirm = self._connection.publish(
                message.exchange,
                message.routing_key,
                message.body,
                headers=message.headers,
                expiration=message.expiration,
            )
        except PublishError as closed:
            message.done.set_exception(closed)
        else:
            confirm.add_done_callback(partial(pass_on, message.done))

    def _group_declared(self, submission: tasks.Submission) -> Future[None] | None:
        """Return the pending declaration of the group's queue; `None`: nothing to wait for."""
        if not submission.create_queue:
            return None
        now = time.monotonic()
        since, declared = self._declared.get(submission.group_id, (-_DECLARED_FOR, None))
        if declared is None or now - since >= _DECLARED_FOR:
            if len(self._declared) >= _MAX_DECLARED:
                self._declared.clear()
            declared = self._connection.declare_once(*topology.of_group(submission.group_id))
            self._declared[submission.group_id] = now, declared
        return None if declared.done() and declared.exception() is None else declared

    def _publish_all(self, outgoing: _Outgoing, error: BaseException | None) -> None:
        if error is not None or not outgoing.new:
            self._on_done(outgoing, error)
            return
        try:
            confirms = list(
                publish_tasks(
                    self._connection,
                    outgoing.submission,
                    outgoing.new,
                    outgoing.code,
                    outgoing.together,
                )
            )
        except PublishError as closed:  # the service is stopping: the next one publishes them
            self._on_done(outgoing, closed)
            return
        countdown = Countdown(len(confirms), partial(self._on_done, outgoing))
        for confirm in confirms:
            confirm.add_done_callback(countdown.one_done)

    def _on_done(self, outgoing: _Outgoing, error: BaseException | None) -> None:
        # Usually runs on the connection's thread.
        if error is None:
            outgoing.done.set_result(None)
        else:
            outgoing.done.set_exception(error)
        self._post(_Confirmed(outgoing.submission.id, error))

    def _send_stored(self) -> None:
        if not self._connected.is_set():
            return
        with self._database.read() as connection:
            waiting = tasks.unpublished(connection, _OUTBOX_PAGE + len(self._in_flight))
            fresh = [each for each in waiting if each.id not in self._in_flight][:_OUTBOX_PAGE]
        sent = 0
        for submission in fresh:
            if sum(each.size for each in self._in_flight.values()) > _MAX_WAITING_BYTES:
                break  # continued after each confirm
            with self._database.read() as connection:
                new = tasks.unpublished_tasks(connection, submission.id, self._official.not_held)
                used = {task.function_id for task in new if task.function_id is not None}
                code = functions.function_code(connection, used)
                together = endpoints.takes_together(connection, submission.endpoint_id)
            self._send(_Outgoing(submission, new, code, together))
            sent += 1
        if sent:
            event(log, logging.INFO, "publishing stored tasks", submissions=sent)
        self._more = sent < len(fresh)
        if len(fresh) == _OUTBOX_PAGE and not self._more:
            self._post(_Wake())
