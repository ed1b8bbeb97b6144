"""Inspects, purges and deletes queues, each operation on its own channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from flux_endpoint.amqp.url import reason_of
from flux_endpoint.errors import AmqpError

T = TypeVar("T")

_ACCESS_REFUSED, _NOT_FOUND = 403, 404
#: Seconds between two checks whether a queue has its messages again.
_PAUSE = 0.02


@dataclass(frozen=True)
class QueueCount:
    """The number of a queue's ready messages, and of its consumers."""

    messages: int
    consumers: int


class _Connection(Protocol):
    """The methods of a connection that a queue admin uses."""

    def post_if_open(self, action: Callable[[], None]) -> bool:
        """Run `action` soon on the connection's thread; return `False` if it was closed."""

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Run `action` on the connection's thread after `delay` seconds."""

    def open_channel(self, on_open: Callable[[Channel], None]) -> Channel | None:
        """Open a channel and return it if the connection is up."""


class QueueAdmin:
    """Performs operations on single queues; its methods are for any thread.

    Nothing is repeated after a reconnect: a future fails with `AmqpError` if there is no connection
    or it is lost.

    Args:
        connection: the connection to the broker.
        timeout: seconds that the broker has for one operation.
    """

    def __init__(self, connection: _Connection, timeout: float = 15.0) -> None:
        self._connection = connection
        self._timeout = timeout

    def count(self, queue: str) -> Future[QueueCount | None]:
        """Count a queue's messages and consumers; the result is `None` if it does not exist."""

        def begin(call: _Call[QueueCount | None], channel: Channel) -> None:
            channel.queue_declare(queue, passive=True, callback=partial(counted, call))

        def counted(call: _Call[QueueCount | None], frame: Any) -> None:
            method = frame.method
            call.finish(QueueCount(method.message_count, method.consumer_count))

        return self._start(begin, {_NOT_FOUND: None})

    def look(self, queue: str) -> Future[list[Mapping[str, Any]] | None]:
        """Return the headers of all messages in a queue, which stay there in order.

        The result is `None` if the queue has a consumer, which may hold messages. In the meantime
        nobody else can consume. A missing queue counts as empty.
        """
        found: list[Mapping[str, Any]] = []
        Answer = list[Mapping[str, Any]] | None  # noqa: N806 - a type

        def begin(call: _Call[Answer], channel: Channel) -> None:
            answered = _while_open(channel, partial(counted, call, channel))
            channel.queue_declare(queue, passive=True, callback=answered)

        def counted(call: _Call[Answer], channel: Channel, frame: Any) -> None:
            expected = frame.method.message_count
            if frame.method.consumer_count:
                call.finish(None)
            elif not expected:
                call.finish(found)
            else:
                take = partial(taken, call, expected)
                channel.basic_consume(queue, take, exclusive=True)

        def taken(
            call: _Call[Answer],
            expected: int,
            channel: Channel,
            method: Any,
            properties: Any,
            _: bytes,
        ) -> None:
            found.append(properties.headers or {})
            if len(found) == expected:
                cancelled = _while_open(channel, partial(put_back, call, expected, channel))
                channel.basic_cancel(method.consumer_tag, callback=cancelled)

        def put_back(call: _Call[Answer], expected: int, channel: Channel, _: Any) -> None:
            channel.basic_nack(multiple=True, requeue=True)
            check(call, expected, channel)

        def check(call: _Call[Answer], expected: int, channel: Channel) -> None:
            # Until the queue has its messages back, others would count too few.
            if channel.is_open:
                seen = partial(counted_again, call, expected, channel)
                channel.queue_declare(queue, passive=True, callback=seen)

        def counted_again(call: _Call[Answer], expected: int, channel: Channel, frame: Any) -> None:
            if frame.method.message_count >= expected or frame.method.consumer_count:
                call.finish(found)
            else:
                self._connection.later(_PAUSE, partial(check, call, expected, channel))

        return self._start(begin, {_NOT_FOUND: found, _ACCESS_REFUSED: None})

    def purge(self, queue: str) -> Future[None]:
        """Drop the ready messages of a queue."""

        def begin(call: _Call[None], channel: Channel) -> None:
            channel.queue_purge(queue, callback=lambda _: call.finish(None))

        return self._start(begin, {_NOT_FOUND: None})

    def delete(self, queue: str) -> Future[None]:
        """Delete a queue with its messages, even if it has consumers."""

        def begin(call: _Call[None], channel: Channel) -> None:
            channel.queue_delete(queue, callback=lambda _: call.finish(None))

        return self._start(begin, {_NOT_FOUND: None})

    def _start(
        self, begin: Callable[[_Call[T], Channel], None], refusals: Mapping[int, T]
    ) -> Future[T]:
        call = _Call(begin, refusals)
        if not self._connection.post_if_open(partial(call.open, self._connection, self._timeout)):
            call.fail("the connection was closed")
        return call.done


def _while_open(channel: Channel, step: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return `step` for an answer that may come after the call was given up.

    On a closing channel it would raise, and that would end the whole connection.
    """
    return lambda frame: step(frame) if channel.is_open else None


class _Call(Generic[T]):
    """One operation; everything except its future belongs to the connection's thread.

    Args:
        begin: sends the first request on the new channel.
        refusals: results for the broker's refusals by reply code; other refusals are errors.
    """

    def __init__(
        self, begin: Callable[[_Call[T], Channel], None], refusals: Mapping[int, T]
    ) -> None:
        self.done: Future[T] = Future()
        self._begin = begin
        self._refusals = refusals
        self._channel: Channel | None = None
        self._result: list[T] = []

    def open(self, connection: _Connection, timeout: float) -> None:
        """Open the channel; fail after a while, or at once if there is no connection."""
        channel = connection.open_channel(self._opened)
        if channel is None:
            self.fail("there is no connection")
            return
        channel.add_on_close_callback(self._closed)  # it may also close before it is open
        connection.later(timeout, partial(self.fail, f"no answer in {timeout:g} s"))

    def finish(self, result: T) -> None:
        """Close the channel; after that, the future is done."""
        if not self._result and self._channel is not None and self._channel.is_open:
            self._result.append(result)
            self._channel.close()

    def _opened(self, channel: Channel) -> None:
        if self.done.done():
            channel.close()
            return
        self._channel = channel
        self._begin(self, channel)

    def _closed(self, _channel: Channel, reason: BaseException) -> None:
        if self.done.done():
            return
        if self._result:
            self.done.set_result(self._result[0])
        elif isinstance(reason, ChannelClosedByBroker) and reason.reply_code in self._refusals:
            self.done.set_result(self._refusals[reason.reply_code])
        else:
            self.fail(reason_of(reason))

    def fail(self, reason: str) -> None:
        """Fail the operation."""
        if self.done.done():
            return
        self.done.set_exception(AmqpError(f"the broker did not do what it was asked: {reason}"))
        if self._channel is not None and self._channel.is_open:
            self._channel.close()
