"""A connection to the message broker, on its own thread, that always reconnects."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from enum import Enum, auto
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

from flux_endpoint import logs
from flux_endpoint.amqp.channels import Channels
from flux_endpoint.amqp.connector import Connector, text_of
from flux_endpoint.amqp.consumer import Consumer, Delivery
from flux_endpoint.amqp.declarer import Declaration, Thing, check
from flux_endpoint.amqp.flow_control import FlowControl
from flux_endpoint.amqp.publisher import OutgoingMessage
from flux_endpoint.amqp.state import ConnectionState, StateChange
from flux_endpoint.amqp.topology import Queue
from flux_endpoint.amqp.wire import WireConnection
from flux_endpoint.amqp.work_queue import WorkQueue
from flux_endpoint.backoff import Backoff
from flux_endpoint.errors import AmqpError, PublishError

log = logging.getLogger(__name__)

__all__ = ["AmqpConnection", "ConnectionState", "StateChange"]

#: Seconds before the second attempt to connect; doubled with each attempt until a connection has
#: lasted `max_backoff` seconds, so that one that ends at once does not cause a tight loop.
_FIRST_BACKOFF = 0.2
#: Seconds before reconnecting after an error within pika.
_AFTER_ERROR = 0.1
#: The most bytes of message bodies that may await their confirms.
_MAX_UNCONFIRMED_BYTES = 64 << 20
#: Seconds that the broker may take to answer our close.
_CLOSING_TIMEOUT = 2.0

# pika logs every connection and its errors; this module reports them itself.
if logging.getLogger("pika").level == logging.NOTSET:
    logging.getLogger("pika").setLevel(logging.CRITICAL)


class _Phase(Enum):
    WAITING = auto()  # for the next attempt
    ATTEMPTING = auto()
    DECLARING = auto()  # connected; lasting declarations are repeated first
    READY = auto()
    ENDED = auto()


class AmqpConnection:
    """A connection that reconnects by itself, and all of its publishers and consumers.

    Publishing and declaring may begin before it is up. All methods may be called from any thread.
    Callbacks run on the connection's own thread and must not block it.

    Args:
        url: the broker's URL, or a callable that returns it before each attempt; the callable runs
            on its own thread, may block, and may raise.
        name: name of the thread, and of the connection in the broker's lists.
        on_state: called with every change of state.
        on_alarm: called with the reason (such as "low on disk") when the broker blocks publishing
            on this connection, and with "" when it accepts messages again. A broker reports this
            only to connections that publish.
        heartbeat: seconds after which a silent peer is given up (at the latest, ten seconds after
            twice that time).
        max_backoff: the most seconds between two attempts.
        max_unconfirmed: `publish` blocks its caller while this many messages, or too many bytes,
            await their confirms; `None`: it never blocks, because the caller limits them itself.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        *,
        name: str,
        on_state: Callable[[StateChange], None] | None = None,
        on_alarm: Callable[[str], None] | None = None,
        heartbeat: float = 20,
        max_backoff: float = 10,
        max_unconfirmed: int | None = 1000,
    ) -> None:
        self._on_state = on_state
        self._on_alarm = on_alarm
        #: Why the broker blocks publishing; empty: it does not, or nobody has tried.
        self.alarm = ""
        self._max_backoff = max_backoff
        self._backoff = Backoff(_FIRST_BACKOFF, max_backoff)
        self._ioloop: Any = IOLoop()
        self._work = WorkQueue(lambda: self._ioloop.add_callback_threadsafe(self._drain))
        self._flow = FlowControl(max_unconfirmed, _MAX_UNCONFIRMED_BYTES)
        self._channels = Channels(self._settled)
        self._connector = Connector(
            url,
            name=name,
            heartbeat=heartbeat,
            ioloop=self._ioloop,
            post=self.post,
            on_open=self._opened,
            on_fail=self._not_connected,
            on_lost=self._lost,
        )
        self._phase = _Phase.WAITING
        self._closing = False
        self._ready_since = 0.0
        #: Set while connected, and after the end.
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # On any thread

    def start(self) -> None:
        """Start connecting; returns at once.

        Raises:
            AmqpError: the connection was closed.
        """
        if self._work.closed:
            raise AmqpError(self._closed_text)
        self._thread.start()

    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds until the connection is up; return whether it is."""
        return self._connected.wait(timeout) and self._phase is not _Phase.ENDED

    def declare(self, *things: Thing) -> Future[None]:
        """Declare `things` now, and first of all after every reconnect.

        Declarations are made in the order of the calls. The future is done when the broker has
        confirmed them; it fails with `AmqpError` if the broker refuses one.
        """
        return self._declare(Declaration(things, lasting=True))

    def declare_once(self, *things: Thing) -> Future[None]:
        """Like `declare`, but not repeated after a reconnect."""
        return self._declare(Declaration(things, lasting=False))

    def _declare(self, declaration: Declaration) -> Future[None]:
        try:
            check(declaration.things)
        except AmqpError as error:
            declaration.done.set_exception(error)
            return declaration.done
        if not self._work.post_if_open(lambda: self._channels.declarer.add(declaration)):
            declaration.done.set_exception(AmqpError(self._closed_text))
        return declaration.done

    def consume(
        self,
        queue: str,
        on_message: Callable[[Delivery], None],
        *,
        prefetch: int,
        exclusive: bool = False,
        bundles: bool = False,
        on_accepted: Callable[[], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
    ) -> Consumer:
        """Subscribe to `queue`.

        Args:
            queue: its name; it need not exist yet.
            on_message: called with each delivery on the connection's thread; must return quickly.
            prefetch: the most unanswered deliveries at a time.
            exclusive: whether nobody else may consume from the queue.
            bundles: whether the parts of a bundle become separate deliveries (see `bundle`).
            on_accepted: called each time the broker grants the subscription, before its first
                delivery.
            on_refused: called with the reason each time the broker refuses or ends the
                subscription, which is then retried with backoff.

        Raises:
            AmqpError: `queue` is not a valid queue name.
        """
        check((Queue(queue),))
        consumer = Consumer(
            self,
            queue,
            on_message,
            prefetch=prefetch,
            exclusive=exclusive,
            bundles=bundles,
            on_accepted=on_accepted,
            on_refused=on_refused,
        )
        self.post(lambda: self._channels.add(consumer))
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

        Unconfirmed messages are published again after a reconnect, so a message arrives at least
        once. Blocks while too many await their confirms, unless `max_unconfirmed` is `None`.

        Args:
            exchange: its name; empty for the default exchange.
            routing_key: the routing key; on the default exchange, the queue's name.
            body: the message.
            headers: AMQP headers.
            mandatory: fail with `UnroutableError` if no queue takes the message.
            persistent: whether the broker writes it to disk.
            timestamp: seconds since the epoch.
            content_type: MIME type.
            expiration: seconds after which the broker drops it.
            message_id: identifies the message in logs.

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
        message = OutgoingMessage(exchange, routing_key, body, properties, mandatory)
        self._flow.enter(len(body), wait=threading.current_thread() is not self._thread)
        if not self._work.post_if_open(lambda: self._channels.publisher.add(message)):
            raise PublishError(self._closed_text)
        return message.done

    def close(self, timeout: float = 5.0) -> None:
        """Wait at most `timeout` seconds for outstanding confirms, then close for good.

        Messages that are unconfirmed by then fail with `PublishError`; they fail at once if the
        broker is unreachable.
        """
        deadline = time.monotonic() + timeout
        first = self._work.close(lambda: self._begin_close(deadline))
        self._flow.unblock()
        if self._thread.ident is None:
            if first:
                self._end()
            return
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout + 2 * _CLOSING_TIMEOUT)

    def __enter__(self) -> AmqpConnection:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def post(self, action: Callable[[], None]) -> None:
        """Run `action` soon on the connection's thread; several posts cost one wake-up."""
        self._work.post(action)

    def post_if_open(self, action: Callable[[], None]) -> bool:
        """Like `post`, but return `False` if the connection was closed."""
        return self._work.post_if_open(action)

    @property
    def _closed_text(self) -> str:
        return f"the connection to {self._connector.address} is closed"

    # On the connection's thread

    def _run(self) -> None:
        self._attempt()
        try:
            while self._phase is not _Phase.ENDED:
                try:
                    self._ioloop.start()
                except Exception as error:  # noqa: BLE001 - whatever pika's callbacks let out
                    self._interrupted(error)
        finally:
            self._end()

    def _interrupted(self, error: Exception) -> None:
        """Reconnect after an error within pika, such as "too many open files"."""
        logs.event(
            log,
            logging.WARNING,
            "reconnecting to the broker after an internal error",
            name=self._thread.name,
            reason=repr(error),
        )
        time.sleep(_AFTER_ERROR)  # in case the error happens every time
        if self._phase is _Phase.ATTEMPTING:
            self._connector.give_up()
            self._not_connected(text_of(error))
        elif self._connector.connection is not None:
            self._connector.connection.abort()  # the callback for its end follows

    def _end(self) -> None:
        self._phase = _Phase.ENDED
        self._connected.set()  # wakes all waiting threads
        self._work.end()
        self._flow.unblock()
        self._channels.fail_all(self._closed_text)
        self._ioloop.close()

    def _drain(self) -> None:
        connection = self._connector.connection
        if connection is None:
            self._work.run()
        else:
            with connection.gathering():
                self._work.run()
                self._channels.publisher.flush()

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Run `action` on this thread after `delay` seconds."""
        self._ioloop.call_later(delay, action)

    def open_channel(self, on_open: Callable[[Channel], None]) -> Channel | None:
        """Open a channel and return it if the connection is up; else do nothing."""
        return self._channels.open(on_open)

    def forget(self, consumer: Consumer) -> None:
        """Remove a cancelled consumer."""
        self._channels.remove(consumer)

    def _attempt(self) -> None:
        if not self._closing:
            self._phase = _Phase.ATTEMPTING
            self._connector.attempt()

    def _not_connected(self, reason: str) -> None:
        self._retry(ConnectionState.UNREACHABLE, reason)

    def _lost(self, reason: str) -> None:
        was_ready = self._phase is _Phase.READY
        self._alarmed("")  # the next connection gets its own alarms
        self._connected.clear()
        self._channels.lost()
        if was_ready and time.monotonic() - self._ready_since > self._max_backoff:
            self._backoff.reset()
        self._retry(ConnectionState.LOST if was_ready else ConnectionState.UNREACHABLE, reason)

    def _retry(self, state: ConnectionState, reason: str) -> None:
        self._phase = _Phase.WAITING
        if self._closing:
            self._finish_close()
            return
        delay = next(self._backoff)
        self._report(StateChange(state, self._connector.address, reason, delay))
        self._ioloop.call_later(delay, self._attempt)

    def _report(self, change: StateChange) -> None:
        logs.event(
            log,
            logging.DEBUG,
            f"broker connection {change.state}",
            name=self._thread.name,
            address=change.address,
            reason=change.reason,
        )
        if self._on_state is not None:
            try:
                self._on_state(change)
            except Exception:
                log.exception("a callback for the state of connection %s failed", self._thread.name)

    def _opened(self, connection: WireConnection) -> None:
        self._phase = _Phase.DECLARING
        if self._closing and self._channels.publisher.idle:
            self._finish_close()
            return
        connection.add_on_connection_blocked_callback(
            lambda _connection, frame: self._alarmed(frame.method.reason or "no reason given")
        )
        connection.add_on_connection_unblocked_callback(lambda *_: self._alarmed(""))
        self._channels.connected(connection, self._ready)

    def _ready(self, server: str) -> None:
        self._phase = _Phase.READY
        self._ready_since = time.monotonic()
        self._connected.set()
        address = self._connector.address
        self._report(StateChange(ConnectionState.CONNECTED, address, server=server))

    def _alarmed(self, reason: str) -> None:
        if reason == self.alarm:
            return
        self.alarm = reason
        logs.event(
            log,
            logging.WARNING,
            "the broker blocks publishing" if reason else "the broker accepts messages again",
            name=self._thread.name,
            address=self._connector.address,
            reason=reason,
        )
        if self._on_alarm is not None:
            try:
                self._on_alarm(reason)
            except Exception:
                log.exception("a callback for alarms of connection %s failed", self._thread.name)

    def _settled(self, message: OutgoingMessage) -> None:
        self._flow.leave(len(message.body))
        if self._closing and self._channels.publisher.idle:
            self._finish_close()

    def _begin_close(self, deadline: float) -> None:
        self._closing = True
        if self._phase is _Phase.WAITING or self._channels.publisher.idle:
            self._finish_close()
        else:
            self._channels.publisher.flush()
            self._ioloop.call_later(max(0.0, deadline - time.monotonic()), self._finish_close)

    def _finish_close(self) -> None:
        if self._phase is _Phase.ENDED:
            return
        connection = self._connector.connection
        if connection is None or connection.is_closed:
            self._phase = _Phase.ENDED
            self._connector.give_up()
            self._report(StateChange(ConnectionState.CLOSED, self._connector.address))
            self._ioloop.stop()
        elif not connection.is_closing:
            self._channels.flush_answers()
            # The connection's end, reported to `_lost` or `_not_connected`, ends the loop.
            if connection.is_open:
                self._ioloop.call_later(_CLOSING_TIMEOUT, connection.abort)
            connection.close()
