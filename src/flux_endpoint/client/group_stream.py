"""Base of a task group's streams: each has its own queue, and asks the service for the rest."""

from __future__ import annotations

import logging
import math
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from flux_endpoint.amqp import AmqpConnection, ConnectionState, Consumer, Delivery
from flux_endpoint.amqp.connection import StateChange
from flux_endpoint.backoff import Backoff
from flux_endpoint.client.api import PAUSES, ServiceApi
from flux_endpoint.client.threads import ClientThread, owner_thread, start
from flux_endpoint.errors import InvalidMessageError, ServiceError, ServiceUnreachableError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """A request of a stream to the service.

    Attributes:
        ask: makes the request, on a thread where it may block; may raise `ServiceError`.
        take: processes the answer, on the stream's thread.
        fail: processes an error of the service, on the stream's thread; `None`: an error also
            drops the questions after this one, since they would probably fail, too.
    """

    ask: Callable[[], Any]
    take: Callable[[Any], object]
    fail: Callable[[ServiceError], object] | None = None


class GroupStream(ABC):
    """Consumes a queue of its own for a task group.

    One thread owns all mutable state. Methods that other threads call post an action to it, as
    does the AMQP connection for each delivery. The inbox needs no bound: the broker sends at most
    `prefetch` deliveries that are not acknowledged.

    The service opens the queue before each attempt to connect, and again if the broker refuses it.
    The stream also asks the service for messages that were sent before the queue existed, or were
    lost with it.

    Args:
        api: the service.
        task_group_id: the group.
        amqp_port: port of the broker; `None`: the port that the service returns.

    Attributes:
        users: number of Executors that use the stream; `streams` changes it under its lock.
    """

    #: Content of the queue's messages.
    kind: ClassVar[Literal["results", "events"]]
    #: The most messages that the broker sends before we acknowledge them.
    prefetch: ClassVar[int]
    #: Whether a message may have several parts, each of them a delivery.
    bundles: ClassVar[bool] = False

    def __init__(self, api: ServiceApi, task_group_id: str, amqp_port: int | None) -> None:
        self.users = 0
        self._api = api
        self._group = task_group_id
        self._amqp_port = amqp_port
        self._client_id = str(uuid.uuid4())  # names our queue
        self._name = f"{self.kind} {task_group_id[:8]}"
        self._closing = threading.Event()
        self._connection: AmqpConnection | None = None
        self._consumer: Consumer | None = None
        #: Whether the connection is lost and that was logged.
        self._loss_logged = False
        #: Whether the broker has refused the queue since it was opened; whether to reopen it.
        self._refused = self._reopen = False
        self._asker: ClientThread | None = None
        self._retire: Callable[[GroupStream], bool] = lambda _: False
        self._thread = owner_thread(
            self._name,
            f"the stream of {self.kind} of task group {task_group_id}",
            after_turn=self._after_turn,
            at_end=self._join_asker,
        )

    def start(self, retire: Callable[[GroupStream], bool]) -> None:
        """Start the thread. It connects when there is something to wait for.

        Args:
            retire: called on the thread when the stream has no user and no work; returns whether
                the stream shall end.
        """
        self._retire = retire
        start(self._thread)

    def release(self) -> None:
        """Let the stream end when it has no more work. Called when it has no user any more."""
        self._thread.post(lambda: None)  # causes a turn, and `_after_turn` checks

    @property
    def is_idle(self) -> bool:
        """Whether all posted actions have begun."""
        return self._thread.is_idle

    def close(self) -> None:
        """Close the connection and end the thread, after the actions in its inbox."""
        self._closing.set()
        self._thread.post(self._on_stop)

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until the thread has ended."""
        self._thread.join(timeout)

    # For subclasses. The methods below run on the stream's thread, unless they say otherwise.

    @property
    @abstractmethod
    def _is_awaited(self) -> bool:
        """Whether anybody waits for the queue's messages."""

    @abstractmethod
    def _take(self, delivery: Delivery) -> None:
        """Process a delivery and acknowledge it.

        Raises:
            InvalidMessageError: it can't be read; nothing was done.
        """

    @abstractmethod
    def _catch_up(self) -> None:
        """Ask the service for the messages that the queue may have missed."""

    @abstractmethod
    def _questions(self) -> list[Question]:
        """Return the pending questions to the service, and forget them."""

    def _has_work(self) -> bool:
        """Return whether the stream has work even if no Executor uses it."""
        return False

    def _next_check(self) -> float:
        """Do what is due after each turn; return the seconds until the next call is due."""
        return math.inf

    def _after_turn(self) -> float:
        if not (self.users or self._has_work()) and self._retire(self):
            self._on_stop()
        return self._next_check()

    def _on_stop(self) -> None:
        self._closing.set()
        if self._connection is not None:
            self._connection.close()
        self._thread.stop()

    # The queue.

    def _connect(self) -> None:
        if self._connection is None:
            connection = AmqpConnection(
                self._url,
                name=self._name,
                on_state=lambda change: self._thread.post(lambda: self._on_state(change)),
            )
            with suppress(RuntimeError):  # the interpreter is about to exit
                connection.start()
                self._connection = connection

    def _url(self) -> str:
        """Open the queue before each attempt to connect. Runs on a separate thread."""
        opened = self._open_queue()
        # There is no need to wait for the connection: the queue keeps all messages from now on.
        self._thread.post(partial(self._on_queue, opened))
        return opened[0]

    def _open_queue(self) -> tuple[str, str]:
        return self._api.open_queue(self.kind, self._group, self._client_id, self._amqp_port)

    def _on_queue(self, opened: tuple[str, str]) -> None:
        """Consume the queue, which gets all messages from now on, and ask for earlier ones."""
        if self._consumer is None and self._connection is not None:
            self._consumer = self._connection.consume(
                opened[1],
                lambda delivery: self._thread.post(lambda: self._on_delivery(delivery)),
                prefetch=self.prefetch,
                bundles=self.bundles,
                on_refused=lambda reason: self._thread.post(lambda: self._on_refused(reason)),
            )
        self._refused = False
        self._catch_up()

    def _on_refused(self, reason: str) -> None:
        level = logging.DEBUG if self._refused else logging.INFO
        what = f"no queue of {self.kind}, opening it again"
        event(log, level, what, group=self._group, reason=reason)
        self._refused = self._reopen = True
        self._catch_up()

    def _on_delivery(self, delivery: Delivery) -> None:
        try:
            self._take(delivery)
        except InvalidMessageError as error:
            what = f"dead-lettered an unreadable message for task group {self._group}: {error}"
            event(log, logging.ERROR, what, message_id=delivery.message_id)
            delivery.reject()

    def _on_state(self, change: StateChange) -> None:
        if change.state is ConnectionState.CONNECTED:
            if self._loss_logged:
                text = f"{self.kind}: connected to {change.address} again"
                event(log, logging.WARNING, text)
            self._loss_logged = False
        elif change.state is not ConnectionState.CLOSED:
            if self._loss_logged or not self._is_awaited:
                return  # nobody waits for a message, so there is nothing to warn of
            self._loss_logged = True
            lost = change.state is ConnectionState.LOST
            what = "lost the connection" if lost else "no connection"
            text = f"{self.kind}: {what} to {change.address}, trying again: {change.reason}"
            event(log, logging.WARNING, text)

    # Requests to the service, for messages that the queue does not have.

    def _ask_service(self) -> None:
        """Start a thread that asks the pending questions; at once, or after the present one."""
        if self._asker is not None or self._closing.is_set():
            return
        questions = self._questions()
        if self._reopen:
            self._reopen = False
            questions.insert(0, Question(self._open_queue, self._on_queue))
        if questions:
            asker = ClientThread(f"asking {self._name}", partial(self._ask, questions))
            self._asker = asker if start(asker) else None

    def _ask(self, questions: list[Question]) -> None:
        """Ask questions in order. Runs on a separate thread, one at a time."""
        try:
            for question in questions:
                try:
                    self._put(question)
                except ServiceError as error:
                    text = f"{self.kind}: a request to the service failed: {error}"
                    event(log, logging.WARNING, text)
                    if question.fail is None:
                        break
                    self._thread.post(partial(question.fail, error))
        finally:
            self._thread.post(self._on_asked)

    def _put(self, question: Question) -> None:
        for pause in Backoff(*PAUSES):
            if self._closing.is_set():
                return
            try:
                self._thread.post(partial(question.take, question.ask()))
            except ServiceUnreachableError:
                self._closing.wait(pause)
            else:
                return

    def _on_asked(self) -> None:
        self._asker = None
        self._ask_service()

    def _join_asker(self) -> None:
        if self._asker is not None:
            self._asker.join()
