"""A subscription to one queue that survives refusals and reconnects."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pika.channel import Channel

from flux_endpoint import logs
from flux_endpoint.amqp.bundle import CONTENT_TYPE, unpack_bundle
from flux_endpoint.backoff import Backoff
from flux_endpoint.errors import InvalidMessageError

log = logging.getLogger(__name__)

#: Seconds before a refused subscription is tried again: at first, and at most.
_FIRST_RETRY, _LAST_RETRY = 0.2, 5.0


class _Loop(Protocol):
    """The methods of a connection that a consumer uses."""

    def post(self, action: Callable[[], None]) -> None:
        """Run `action` soon on the connection's thread."""

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Run `action` on the connection's thread after `delay` seconds."""

    def open_channel(self, on_open: Callable[[Channel], None]) -> object:
        """Open a channel, if the connection is up."""

    def forget(self, consumer: Consumer) -> None:
        """Remove a cancelled consumer."""


@dataclass(slots=True, eq=False)
class Delivery:
    """One message from a queue.

    `ack` or `reject` must be called once, from any thread. They do nothing if the channel that
    brought the message is gone: the broker then delivers it again.
    """

    body: bytes
    headers: Mapping[str, Any]
    exchange: str
    routing_key: str
    redelivered: bool
    #: Seconds since the epoch, if the publisher set it.
    timestamp: int | None
    message_id: str | None
    _message: _Message

    def ack(self) -> None:
        """Acknowledge the message: it is stored or processed."""
        self._message.settle(accepted=True)

    def reject(self) -> None:
        """Dead-letter the message: the queue's dead-letter exchange gets it; it is never requeued.

        If it is part of a bundle, the whole bundle is dead-lettered once all parts are answered.
        """
        self._message.settle(accepted=False)


class _Message:
    """A message from the broker, and its number of unanswered deliveries."""

    __slots__ = ("_accepted", "_answers", "_lock", "_open", "_tag")

    def __init__(self, answers: _Answers, tag: int, parts: int) -> None:
        self._answers = answers
        self._tag = tag
        self._open = parts
        self._accepted = True
        self._lock = threading.Lock()

    def settle(self, *, accepted: bool) -> None:
        """Record the answer to one of its deliveries; the last one is sent to the broker."""
        with self._lock:
            self._open -= 1
            self._accepted &= accepted
            if self._open:
                return
        self._answers.add(self._tag, accepted=self._accepted)


class _Answers:
    """The answers to the messages of one channel; they end with it."""

    def __init__(self, channel: Channel, post: Callable[[Callable[[], None]], None]) -> None:
        self._channel = channel
        self._post = post
        #: Tags of unanswered messages, in ascending order.
        self._unanswered: dict[int, None] = {}
        self._unsent: deque[tuple[int, bool]] = deque()

    def add(self, tag: int, *, accepted: bool) -> None:
        """Answer a message. From any thread."""
        self._unsent.append((tag, accepted))
        self._post(self.flush)

    # On the connection's thread

    def expect(self, tag: int) -> None:
        """Record that a message has arrived."""
        self._unanswered[tag] = None

    def flush(self) -> None:
        """Send the pending answers, in as few frames as possible."""
        channel = self._channel
        accepted: list[int] = []
        while self._unsent:
            tag, good = self._unsent.popleft()
            if not channel.is_open or tag not in self._unanswered:
                continue  # a second answer would make the broker close the channel
            del self._unanswered[tag]
            if good:
                accepted.append(tag)
            else:
                channel.basic_reject(tag, requeue=False)
        if not accepted:
            return
        # All messages below the first unanswered one are acknowledged at once.
        first = next(iter(self._unanswered), None)
        upto = max((tag for tag in accepted if first is None or tag < first), default=0)
        if upto:
            channel.basic_ack(upto, multiple=True)
        for tag in accepted:
            if tag > upto:
                channel.basic_ack(tag)


class Consumer:
    """A subscription. Its public methods may be called from any thread.

    Args:
        loop: the connection.
        queue: the queue's name.
        on_message: called with each delivery on the connection's thread.
        prefetch: the most unanswered deliveries at a time.
        exclusive: whether nobody else may consume from the queue.
        bundles: whether the parts of a bundle become separate deliveries.
        on_accepted: called each time the broker grants the subscription.
        on_refused: called with the reason each time the broker refuses or ends it.
    """

    def __init__(
        self,
        loop: _Loop,
        queue: str,
        on_message: Callable[[Delivery], None],
        *,
        prefetch: int,
        exclusive: bool,
        bundles: bool,
        on_accepted: Callable[[], None] | None,
        on_refused: Callable[[str], None] | None,
    ) -> None:
        self._loop = loop
        self._queue = queue
        self._on_message = on_message
        self._prefetch = prefetch
        self._exclusive = exclusive
        self._bundles = bundles
        self._on_accepted = on_accepted
        self._on_refused = on_refused
        self._paused = False
        self._cancelled = False
        self._channel: Channel | None = None
        self._tag: str | None = None
        self._answers: _Answers | None = None  # those of the present channel
        self._backoff = Backoff(_FIRST_RETRY, _LAST_RETRY)
        #: Counts losses, so that a retry is not made besides the next connection's subscription.
        self._losses = 0

    def pause(self) -> None:
        """Stop deliveries; existing ones can still be answered."""
        self._loop.post(self._pause)

    def resume(self) -> None:
        """Resume deliveries."""
        self._loop.post(self._resume)

    def cancel(self) -> None:
        """End the subscription; unanswered messages return to the queue."""
        self._loop.post(self._cancel)

    # On the connection's thread

    def open(self) -> None:
        """Subscribe on a new channel."""
        if not self._cancelled:
            self._loop.open_channel(self._opened)

    def lost(self) -> None:
        """Handle the loss of the connection, and with it of the channel."""
        self._channel = None
        self._tag = None
        self._answers = None
        self._losses += 1

    def _opened(self, channel: Channel) -> None:
        if self._cancelled:
            channel.close()
            return
        self._channel = channel
        self._answers = _Answers(channel, self._loop.post)
        self._tag = None
        channel.add_on_close_callback(self._closed)
        channel.add_on_cancel_callback(self._cancelled_by_broker)
        channel.basic_qos(prefetch_count=self._prefetch, callback=lambda _: self._subscribe())

    def _subscribe(self) -> None:
        channel, answers = self._channel, self._answers
        if channel is None or answers is None or not channel.is_open:
            return
        if self._paused or self._tag is not None:
            return
        self._tag = channel.basic_consume(
            self._queue,
            lambda _channel, method, properties, body: self._deliver(
                answers, method, properties, body
            ),
            exclusive=self._exclusive,
            callback=lambda _: self._accepted(),
        )

    def _accepted(self) -> None:
        self._backoff.reset()
        if self._on_accepted is not None:
            try:
                self._on_accepted()
            except Exception:
                log.exception("a callback for the subscription to %s failed", self._queue)

    def _deliver(self, answers: _Answers, method: Any, properties: Any, body: bytes) -> None:
        answers.expect(method.delivery_tag)
        parts = [(body, properties.headers or {}, properties.message_id)]
        if self._bundles and properties.content_type == CONTENT_TYPE:
            try:
                parts = [(p.body, p.headers, p.message_id) for p in unpack_bundle(body)]
            except InvalidMessageError as error:
                logs.event(
                    log,
                    logging.ERROR,
                    "a bundle is dead-lettered",
                    queue=self._queue,
                    key=method.routing_key,
                    reason=error,
                )
                answers.add(method.delivery_tag, accepted=False)
                return
        message = _Message(answers, method.delivery_tag, len(parts))
        for part, headers, message_id in parts:
            self._hand_over(
                Delivery(
                    part,
                    headers,
                    method.exchange,
                    method.routing_key,
                    method.redelivered,
                    properties.timestamp,
                    message_id,
                    message,
                )
            )

    def _hand_over(self, delivery: Delivery) -> None:
        try:
            self._on_message(delivery)
        except Exception:
            log.exception(
                "a message of queue %s (key %s, id %s) could not be processed; it is dead-lettered",
                self._queue,
                delivery.routing_key,
                delivery.message_id,
            )
            delivery.reject()

    def flush(self) -> None:
        """Send the pending answers."""
        if self._answers is not None:
            self._answers.flush()

    def _pause(self) -> None:
        self._paused = True
        if self._channel is not None and self._channel.is_open and self._tag is not None:
            self._channel.basic_cancel(self._tag)
        self._tag = None

    def _resume(self) -> None:
        self._paused = False
        self._subscribe()

    def _cancel(self) -> None:
        self._cancelled = True
        if self._channel is not None and self._channel.is_open:
            self._channel.close()
        self.lost()
        self._loop.forget(self)

    def _cancelled_by_broker(self, _frame: Any) -> None:
        if self._channel is not None and self._channel.is_open:
            self._channel.close()
            self._refused(f"queue '{self._queue}' was deleted")

    def _closed(self, channel: Channel, reason: BaseException) -> None:
        if channel is self._channel and channel.connection.is_open:
            self._refused(str(reason))

    def _refused(self, reason: str) -> None:
        """Retry later, unless the connection is lost first: then the next one subscribes."""
        self.lost()
        losses = self._losses
        logs.event(log, logging.INFO, "subscription refused", queue=self._queue, reason=reason)
        if self._on_refused is not None:
            try:
                self._on_refused(reason)
            except Exception:
                log.exception("a callback for refusals of queue %s failed", self._queue)

        def retry() -> None:
            if losses == self._losses:
                self.open()

        self._loop.later(next(self._backoff), retry)
