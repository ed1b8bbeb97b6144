"""A connection to the message broker, in a thread of its own, that reconnects for ever."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.channel import Channel

from flux_endpoint import logs
from flux_endpoint.amqp.consumer import Consumer, Delivery
from flux_endpoint.amqp.declarer import Thing, declare_all
from flux_endpoint.amqp.publisher import Message, Publisher
from flux_endpoint.amqp.url import address_of, connection_parameters, reason_of
from flux_endpoint.errors import AmqpError, PublishError

log = logging.getLogger(__name__)

_FIRST_BACKOFF = 0.2  # seconds

# Connections come and go, and what becomes of each is reported by this module.
if logging.getLogger("pika").level == logging.NOTSET:
    logging.getLogger("pika").setLevel(logging.CRITICAL)


class ConnectionState(StrEnum):
    """What an `on_state` callback is told."""

    CONNECTED = "connected"
    LOST = "lost"  # it was connected, and tries again
    UNREACHABLE = "unreachable"  # an attempt failed, another follows
    CLOSED = "closed"  # by us, for good


@dataclass(frozen=True)
class StateChange:
    """A change of a connection's state.

    Attributes:
        state: the new state.
        address: `host:port/vhost`, never with the password.
        reason: one sentence; empty when connected.
        retry_in: seconds until the next attempt; 0 when connected or closed.
    """

    state: ConnectionState
    address: str
    reason: str = ""
    retry_in: float = 0.0


@dataclass(eq=False)
class _Declaration:
    things: tuple[Thing, ...]
    done: Future[None]


class AmqpConnection:
    """A connection that comes back by itself, and everything that goes over it.

    Publishing and declaring may begin before it is up. All methods may be called from any thread;
    callbacks come on the connection's own and must not block it.

    Args:
        url: where to connect; a callable is asked before every attempt, and may raise.
        name: of the thread, and of the connection in the broker's lists.
        on_state: told every change of state.
        heartbeat: seconds after which a silent peer is given up (at the latest after twice that).
        max_backoff: most seconds between two attempts.
        max_unconfirmed: `publish` blocks its caller while so many messages await their confirm.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        *,
        name: str,
        on_state: Callable[[StateChange], None] | None = None,
        heartbeat: float = 20,
        max_backoff: float = 10,
        max_unconfirmed: int = 1000,
    ) -> None:
        self._url = url
        self._name = name
        self._on_state = on_state
        self._heartbeat = heartbeat
        self._max_backoff = max_backoff
        self._max_unconfirmed = max_unconfirmed
        self._address = address_of(url) if isinstance(url, str) else "the message broker"
        self._ioloop: Any = IOLoop()
        self._connection: SelectConnection | None = None
        self._publisher = Publisher(self._settled, self._open_publisher)
        self._consumers: list[Consumer] = []
        self._lasting: list[_Declaration] = []
        self._passing: list[_Declaration] = []
        self._under_way: list[_Declaration] = []
        self._failures = 0
        self._ready = False
        self._closing = False
        self._ended = False
        self._connected = threading.Event()
        self._actions: deque[Callable[[], None]] = deque()
        self._wake_pending = False
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._outstanding = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # Any thread

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._thread.start()

    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait until the connection is up, for at most `timeout` seconds; return whether it is."""
        return self._connected.wait(timeout)

    def declare(self, *things: Thing) -> Future[None]:
        """Declare `things` now, and again first thing after every reconnect.

        The future is done when the broker has confirmed them; it fails with `AmqpError` when the
        broker refuses one.
        """
        declaration = _Declaration(things, Future())
        self.post(lambda: self._add_declaration(declaration, lasting=True))
        return declaration.done

    def declare_once(self, *things: Thing) -> Future[None]:
        """Like `declare`, without the repetition after a reconnect."""
        declaration = _Declaration(things, Future())
        self.post(lambda: self._add_declaration(declaration, lasting=False))
        return declaration.done

    def consume(
        self,
        queue: str,
        on_message: Callable[[Delivery], None],
        *,
        prefetch: int,
        exclusive: bool = False,
        on_refused: Callable[[str], None] | None = None,
    ) -> Consumer:
        """Subscribe to `queue`.

        Args:
            queue: its name; it need not exist yet.
            on_message: takes each delivery, on the connection's thread: hand over, don't work.
            prefetch: most deliveries that are unanswered at a time.
            exclusive: let nobody else consume from the queue.
            on_refused: told the reason each time that the broker refuses or ends the
                subscription, which is then tried again with backoff.
        """
        consumer = Consumer(
            self,
            queue,
            on_message,
            prefetch=prefetch,
            exclusive=exclusive,
            on_refused=on_refused,
        )
        self.post(lambda: self._add_consumer(consumer))
        return consumer

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        headers: Mapping[str, Any] | None = None,
        mandatory: bool = True,
        persistent: bool = True,
        timestamp: int | None = None,
        content_type: str | None = None,
        expiration: float | None = None,
        message_id: str | None = None,
    ) -> Future[None]:
        """Publish a message; the future is done when the broker has confirmed it.

        What the broker has not confirmed is published again after a reconnect, so a message arrives
        at least once. Blocks while too many messages await their confirm.

        Args:
            exchange: its name; empty for the default exchange.
            routing_key: routing key, the queue's name on the default exchange.
            body: the message.
            headers: AMQP headers.
            mandatory: fail with `UnroutableError` if no queue takes the message.
            persistent: have the broker write it to disk.
            timestamp: seconds since the epoch.
            content_type: MIME type.
            expiration: seconds after which the broker drops it.
            message_id: identity that logs can name.

        Raises:
            PublishError: the connection was closed.
        """
        properties = pika.BasicProperties(  # type: ignore[no-untyped-call]
            headers=dict(headers) if headers is not None else None,
            delivery_mode=2 if persistent else 1,
            timestamp=timestamp,
            content_type=content_type,
            expiration=None if expiration is None else str(round(expiration * 1000)),
            message_id=message_id,
        )
        message = Message(exchange, routing_key, body, properties, mandatory)
        with self._room:
            if threading.current_thread() is not self._thread:
                self._room.wait_for(
                    lambda: self._outstanding < self._max_unconfirmed or self._closed
                )
            if self._closed:
                raise PublishError(f"the connection to {self._address} is closed")
            self._outstanding += 1
        self.post(lambda: self._publisher.add(message))
        return message.done

    def close(self, timeout: float = 5.0) -> None:
        """Wait for open confirms, for at most `timeout` seconds, then close for good.

        Messages that were not confirmed by then fail with `PublishError`.
        """
        with self._room:
            self._closed = True
            self._room.notify_all()
        if not self._thread.is_alive():
            if self._thread.ident is None:
                self._publisher.fail_all(f"the connection to {self._address} was never started")
            return
        deadline = time.monotonic() + timeout
        self.post(lambda: self._begin_close(deadline))
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout + 5.0)

    def __enter__(self) -> AmqpConnection:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def post(self, action: Callable[[], None]) -> None:
        """Run `action` soon on the connection's thread; many posts cost one wake-up."""
        self._actions.append(action)
        with self._lock:
            if self._wake_pending:
                return
            self._wake_pending = True
        self._ioloop.add_callback_threadsafe(self._drain)

    # The connection's thread

    def _run(self) -> None:
        self._attempt()
        try:
            self._ioloop.start()
        finally:
            self._publisher.fail_all(f"the connection to {self._address} was closed")
            for declaration in (*self._lasting, *self._passing):
                if not declaration.done.done():
                    declaration.done.set_exception(AmqpError("the connection was closed"))
            self._ioloop.close()

    def _drain(self) -> None:
        with self._lock:
            self._wake_pending = False
        while self._actions:
            self._actions.popleft()()
        self._publisher.flush()

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Run `action` on this thread after `delay` seconds."""
        self._ioloop.call_later(delay, action)

    def open_channel(self, on_open: Callable[[Channel], None]) -> None:
        """Open a channel, if the connection is up; else nothing happens."""
        if self._connection is not None and self._connection.is_open:
            self._connection.channel(on_open_callback=on_open)

    def _attempt(self) -> None:
        if self._closing:
            return
        try:
            url = self._url if isinstance(self._url, str) else self._url()
            self._address = address_of(url)
            parameters = connection_parameters(url, name=self._name, heartbeat=self._heartbeat)
        except Exception as error:  # noqa: BLE001 - whatever the caller's function raises
            self._retry(ConnectionState.UNREACHABLE, str(error) or type(error).__name__)
            return
        self._connection = SelectConnection(
            parameters,
            on_open_callback=self._opened,
            on_open_error_callback=self._refused,
            on_close_callback=self._lost,
            custom_ioloop=self._ioloop,
        )

    def _retry(self, state: ConnectionState, reason: str) -> None:
        longest = min(self._max_backoff, _FIRST_BACKOFF * 2 ** min(self._failures, 16))
        delay = random.uniform(longest / 2, longest)  # noqa: S311 - jitter
        self._failures += 1
        self._report(StateChange(state, self._address, reason, delay))
        self._ioloop.call_later(delay, self._attempt)

    def _report(self, change: StateChange) -> None:
        logs.event(
            log,
            logging.DEBUG,
            f"broker connection {change.state}",
            name=self._name,
            address=change.address,
            reason=change.reason,
        )
        if self._on_state is not None:
            try:
                self._on_state(change)
            except Exception:
                log.exception("a callback for the state of connection %s failed", self._name)

    def _refused(self, _connection: Any, error: BaseException) -> None:
        self._connection = None
        if self._closing:
            self._finish_close()
            return
        self._retry(ConnectionState.UNREACHABLE, reason_of(error))

    def _lost(self, _connection: Any, error: BaseException) -> None:
        self._connection = None
        was_ready, self._ready = self._ready, False
        self._connected.clear()
        self._publisher.lost()
        self._under_way.clear()
        for consumer in self._consumers:
            consumer.lost()
        if self._closing:
            self._finish_close()
            return
        state = ConnectionState.LOST if was_ready else ConnectionState.UNREACHABLE
        self._retry(state, reason_of(error))

    def _opened(self, connection: Any) -> None:
        if self._closing:
            connection.close()
            return
        connection.add_on_connection_blocked_callback(
            lambda *_: logs.event(
                log, logging.WARNING, "the broker takes no messages now", address=self._address
            )
        )
        connection.add_on_connection_unblocked_callback(
            lambda *_: logs.event(
                log, logging.WARNING, "the broker takes messages again", address=self._address
            )
        )
        self._declare_next(deque(self._lasting))

    def _declare_next(self, left: deque[_Declaration]) -> None:
        """Declare what lasts, one after the other; then everything else may begin."""
        if not left:
            self._begin()
            return
        declaration = left.popleft()

        def done(error: AmqpError | None) -> None:
            self._finish_declaration(declaration, error)
            self._declare_next(left)

        self.open_channel(lambda channel: declare_all(channel, declaration.things, done))

    def _begin(self) -> None:
        self._ready = True
        self._failures = 0
        self._open_publisher()
        self._declare_passing()
        for consumer in self._consumers:
            consumer.open()
        self._connected.set()
        self._report(StateChange(ConnectionState.CONNECTED, self._address))

    def _open_publisher(self) -> None:
        self.open_channel(self._publisher.opened)

    def _add_declaration(self, declaration: _Declaration, *, lasting: bool) -> None:
        if lasting:
            self._lasting.append(declaration)
        if not self._ready:
            if not lasting:
                self._passing.append(declaration)
            return
        self._passing.append(declaration)
        self._declare_passing()

    def _declare_passing(self) -> None:
        """Declare what has been asked for; what a loss interrupts is asked for again."""
        for declaration in self._passing:
            if declaration not in self._under_way:
                self._under_way.append(declaration)
                self._declare(declaration)

    def _declare(self, declaration: _Declaration) -> None:
        def done(error: AmqpError | None) -> None:
            self._passing.remove(declaration)
            self._under_way.remove(declaration)
            self._finish_declaration(declaration, error)

        self.open_channel(lambda channel: declare_all(channel, declaration.things, done))

    def _finish_declaration(self, declaration: _Declaration, error: AmqpError | None) -> None:
        if declaration.done.done():
            if error is not None:
                logs.event(log, logging.ERROR, "declaration refused", reason=str(error))
        elif error is None:
            declaration.done.set_result(None)
        else:
            declaration.done.set_exception(error)

    def _add_consumer(self, consumer: Consumer) -> None:
        self._consumers.append(consumer)
        if self._ready:
            consumer.open()

    def _settled(self) -> None:
        with self._room:
            self._outstanding -= 1
            self._room.notify()
        if self._closing and self._publisher.idle:
            self._finish_close()

    def _begin_close(self, deadline: float) -> None:
        self._closing = True
        if not self._ready or self._publisher.idle:
            self._finish_close()
            return
        self._publisher.flush()
        self._ioloop.call_later(max(0.0, deadline - time.monotonic()), self._finish_close)

    def _finish_close(self) -> None:
        if self._connection is not None and self._connection.is_open:
            self._connection.close()
        elif not self._ended and (self._connection is None or self._connection.is_closed):
            self._ended = True
            self._report(StateChange(ConnectionState.CLOSED, self._address))
            self._ioloop.stop()
        # Else an attempt or a closing handshake is under way; its end stops the loop.
