"""A connection to the message broker, on its own thread, that always reconnects."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel

from flux_endpoint import logs
from flux_endpoint.amqp.consumer import Consumer, Delivery
from flux_endpoint.amqp.declarer import Declaration, Declarer, Thing, check
from flux_endpoint.amqp.flow_control import FlowControl
from flux_endpoint.amqp.publisher import OutgoingMessage, Publisher
from flux_endpoint.amqp.state import ConnectionState, StateChange
from flux_endpoint.amqp.topology import Queue
from flux_endpoint.amqp.url import address_of, connection_parameters, reason_of
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
        self._url = url
        self._name = name
        self._on_state = on_state
        self._on_alarm = on_alarm
        #: Why the broker blocks publishing; empty: it does not, or nobody has tried.
        self.alarm = ""
        self._heartbeat = heartbeat
        self._max_backoff = max_backoff
        self._address = address_of(url) if isinstance(url, str) else "the message broker"
        self._ioloop: Any = IOLoop()
        self._connection: WireConnection | None = None
        self._publisher = Publisher(self._settled, self._open_publisher)
        self._declarer = Declarer(self.open_channel)
        self._consumers: list[Consumer] = []
        self._backoff = Backoff(_FIRST_BACKOFF, max_backoff)
        self._attempting = False
        #: Counts attempts: callbacks of an earlier one are ignored.
        self._number = 0
        self._since = 0.0
        self._ready = False
        self._closing = False
        self._ended = False
        self._connected = threading.Event()
        self._work = WorkQueue(lambda: self._ioloop.add_callback_threadsafe(self._drain))
        self._may_block = max_unconfirmed is not None
        self._window = FlowControl(max_unconfirmed or 0, _MAX_UNCONFIRMED_BYTES)
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
        return self._connected.wait(timeout) and not self._ended

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
        if not self._work.post_if_open(lambda: self._declarer.add(declaration)):
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
        wait = self._may_block and threading.current_thread() is not self._thread
        self._window.enter(len(body), wait=wait)
        if not self._work.post_if_open(lambda: self._publisher.add(message)):
            raise PublishError(self._closed_text)
        return message.done

    def close(self, timeout: float = 5.0) -> None:
        """Wait at most `timeout` seconds for outstanding confirms, then close for good.

        Messages that are unconfirmed by then fail with `PublishError`; they fail at once if the
        broker is unreachable.
        """
        deadline = time.monotonic() + timeout
        first = self._work.close(lambda: self._begin_close(deadline))
        self._window.close()
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
        return f"the connection to {self._address} is closed"

    # On the connection's thread

    def _run(self) -> None:
        self._attempt()
        try:
            while not self._ended:
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
            name=self._name,
            reason=repr(error),
        )
        time.sleep(_AFTER_ERROR)  # in case the error happens every time
        connection = self._connection
        if self._attempting:
            self._number += 1
            if connection is not None:
                with suppress(Exception):  # it may be in any state
                    connection.close()
            self._not_connected(str(error) or type(error).__name__)
        elif connection is not None:
            connection.abort()  # the callback for its end follows

    def _end(self) -> None:
        self._ended = True
        self._connected.set()  # wakes all waiting threads
        self._work.end()
        self._window.close()
        self._publisher.fail_all(self._closed_text)
        self._declarer.fail_all(self._closed_text)
        self._ioloop.close()

    def _drain(self) -> None:
        if self._connection is None:
            self._work.run()
        else:
            with self._connection.gathering():
                self._work.run()
                self._publisher.flush()

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Run `action` on this thread after `delay` seconds."""
        self._ioloop.call_later(delay, action)

    def open_channel(self, on_open: Callable[[Channel], None]) -> Channel | None:
        """Open a channel and return it if the connection is up; else do nothing."""
        if self._connection is None or not self._connection.is_open:
            return None
        channel: Channel = self._connection.channel(on_open_callback=on_open)
        return channel

    def forget(self, consumer: Consumer) -> None:
        """Remove a cancelled consumer."""
        self._consumers.remove(consumer)

    def _attempt(self) -> None:
        if self._closing:
            return
        self._attempting = True
        if isinstance(self._url, str):
            self._connect(self._url)
        else:
            asking = partial(self._ask, self._url)
            threading.Thread(target=asking, name=f"{self._name} url", daemon=True).start()

    def _ask(self, function: Callable[[], str]) -> None:
        """Get the URL. Runs on its own thread, so that the connection can be closed meanwhile."""
        try:
            url = function()
        except Exception as error:  # noqa: BLE001 - whatever the caller's function raises
            reason = str(error) or type(error).__name__
            self.post(lambda: self._not_connected(reason))
        else:
            self.post(lambda: self._connect(url))

    def _connect(self, url: str) -> None:
        try:
            self._address = address_of(url)
            parameters = connection_parameters(url, name=self._name, heartbeat=self._heartbeat)
            self._number += 1
            self._connection = WireConnection(
                parameters,
                on_open_callback=self._if_current(self._opened),
                on_open_error_callback=self._if_current(self._refused),
                on_close_callback=self._if_current(self._lost),
                custom_ioloop=self._ioloop,
            )
        except Exception as error:  # noqa: BLE001 - whatever a wrong URL makes of it
            self._not_connected(str(error) or type(error).__name__)

    def _if_current(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Return a callback of the present connection attempt that later attempts disable."""
        number = self._number

        def current(*args: Any) -> None:
            if number == self._number:
                callback(*args)

        return current

    def _retry(self, state: ConnectionState, reason: str) -> None:
        delay = next(self._backoff)
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
        self._not_connected(reason_of(error))

    def _not_connected(self, reason: str) -> None:
        self._connection = None
        self._attempting = False
        if self._closing:
            self._finish_close()
            return
        self._retry(ConnectionState.UNREACHABLE, reason)

    def _lost(self, _connection: Any, error: BaseException) -> None:
        self._connection = None
        was_ready, self._ready = self._ready, False
        self._alarmed("")  # the next connection gets its own alarms
        self._connected.clear()
        self._publisher.lost()
        self._declarer.lost()
        for consumer in self._consumers:
            consumer.lost()
        if self._closing:
            self._finish_close()
            return
        if was_ready and time.monotonic() - self._since > self._max_backoff:
            self._backoff.reset()
        state = ConnectionState.LOST if was_ready else ConnectionState.UNREACHABLE
        self._retry(state, reason_of(error))

    def _opened(self, connection: Any) -> None:
        self._attempting = False
        if self._closing and self._publisher.idle:
            self._finish_close()
            return
        connection.add_on_connection_blocked_callback(
            lambda _connection, frame: self._alarmed(frame.method.reason or "no reason given")
        )
        connection.add_on_connection_unblocked_callback(lambda *_: self._alarmed(""))
        self._declarer.connected(self._begin)

    def _alarmed(self, reason: str) -> None:
        if reason == self.alarm:
            return
        self.alarm = reason
        logs.event(
            log,
            logging.WARNING,
            "the broker blocks publishing" if reason else "the broker accepts messages again",
            name=self._name,
            address=self._address,
            reason=reason,
        )
        if self._on_alarm is not None:
            try:
                self._on_alarm(reason)
            except Exception:
                log.exception("a callback for alarms of connection %s failed", self._name)

    def _begin(self) -> None:
        self._ready = True
        self._since = time.monotonic()
        self._open_publisher()
        for consumer in self._consumers:
            consumer.open()
        self._connected.set()
        server = self._connection.server if self._connection is not None else ""
        self._report(StateChange(ConnectionState.CONNECTED, self._address, server=server))

    def _open_publisher(self) -> None:
        self.open_channel(self._publisher.opened)

    def _add_consumer(self, consumer: Consumer) -> None:
        self._consumers.append(consumer)
        if self._ready:
            consumer.open()

    def _settled(self, message: OutgoingMessage) -> None:
        self._window.leave(len(message.body))
        if self._closing and self._publisher.idle:
            self._finish_close()

    def _begin_close(self, deadline: float) -> None:
        self._closing = True
        under_way = self._attempting or self._connection is not None
        if not under_way or self._publisher.idle:
            self._finish_close()
        else:
            self._publisher.flush()
            self._ioloop.call_later(max(0.0, deadline - time.monotonic()), self._finish_close)

    def _finish_close(self) -> None:
        connection = self._connection
        if self._ended:
            return
        if connection is None or connection.is_closed:
            self._ended = True
            self._report(StateChange(ConnectionState.CLOSED, self._address))
            self._ioloop.stop()
        elif not connection.is_closing:
            for consumer in self._consumers:
                consumer.flush()
            # The connection's end, reported to `_lost` or `_refused`, ends the loop.
            if connection.is_open:
                self._ioloop.call_later(_CLOSING_TIMEOUT, connection.abort)
            connection.close()
