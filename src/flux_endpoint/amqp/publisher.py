"""Sends messages to the broker in order, keeps them until confirmed, and resends lost ones.

Everything here runs on the connection's thread.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pika
import pika.spec
from pika.channel import Channel

from flux_endpoint import logs
from flux_endpoint.amqp.url import is_protocol_fault
from flux_endpoint.errors import PublishError, RefusedMessageError, UnroutableError

log = logging.getLogger(__name__)

#: The broker names the exchange that closed a channel only in its text: "no exchange 'x' in ...",
#: "access to exchange 'x' in ...". (An error that also names a topic does not concern the whole
#: exchange.)
_EXCHANGE = re.compile(r"(?:no|access to) exchange '([^']*)'")


@dataclass(eq=False)
class OutgoingMessage:
    """A message and its future."""

    exchange: str
    routing_key: str
    body: bytes
    properties: pika.BasicProperties
    mandatory: bool
    done: Future[None] = field(default_factory=Future)
    returned: str | None = None

    def __str__(self) -> str:
        return f"a message for exchange '{self.exchange}' with key '{self.routing_key}'"


class Publisher:
    """A channel with pipelined publisher confirms.

    Args:
        on_settled: called with each confirmed or failed message, after its future is done.
        reopen: requests another channel after the broker has closed this one.
    """

    def __init__(
        self, on_settled: Callable[[OutgoingMessage], None], reopen: Callable[[], None]
    ) -> None:
        self._on_settled = on_settled
        self._reopen = reopen
        self._waiting: deque[OutgoingMessage] = deque()
        #: By delivery tag; tags rise by one with each message of a channel.
        self._unconfirmed: dict[int, OutgoingMessage] = {}
        self._lowest = 1
        self._next = 1
        self._channel: Channel | None = None
        #: This many of the next messages are sent one at a time: one of them has closed the
        #: channel.
        self._suspects = 0

    @property
    def idle(self) -> bool:
        """Whether all messages are settled."""
        return not self._waiting and not self._unconfirmed

    def add(self, message: OutgoingMessage) -> None:
        """Queue a message; `flush` sends it."""
        self._waiting.append(message)

    def opened(self, channel: Channel) -> None:
        """Use a new channel, and send the waiting messages."""
        self._lowest = self._next = 1
        channel.add_on_return_callback(self._returned)
        channel.add_on_close_callback(self._closed)
        channel.confirm_delivery(self._confirmed)
        self._channel = channel
        self.flush()

    def flush(self) -> None:
        """Send the waiting messages, if there is a channel."""
        if self._channel is None:
            return
        while self._waiting and self._channel.is_open:
            if self._suspects and self._unconfirmed:
                return  # the confirm of the message in flight calls this again
            self._send(self._channel, self._waiting.popleft())

    def _send(self, channel: Channel, message: OutgoingMessage) -> None:
        try:
            channel.basic_publish(
                message.exchange,
                message.routing_key,
                message.body,
                message.properties,
                mandatory=message.mandatory,
            )
        except Exception as error:  # noqa: BLE001 - pika encodes all before it sends anything
            text = f"can't be put on the wire: {error or type(error).__name__}"
            self._settle(message, RefusedMessageError(f"{message} {text}"))
            return
        self._unconfirmed[self._next] = message
        self._next += 1

    def lost(self) -> None:
        """Handle the loss of the connection: unconfirmed messages are sent again, in order."""
        self._channel = None
        for message in self._unconfirmed.values():
            message.returned = None  # the queue may exist next time
        self._waiting.extendleft(reversed(self._unconfirmed.values()))
        self._unconfirmed.clear()

    def fail_all(self, reason: str) -> None:
        """Fail all messages."""
        self.lost()
        while self._waiting:
            self._settle(self._waiting.popleft(), PublishError(reason))

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        tag: int = method.delivery_tag
        tags = range(self._lowest, tag + 1) if method.multiple else (tag,)
        refused = isinstance(method, pika.spec.Basic.Nack)
        for each in tags:
            message = self._unconfirmed.pop(each, None)
            if message is None:
                continue
            error: Exception | None = None
            if message.returned is not None:
                error = UnroutableError(message.returned)
            elif refused:
                error = PublishError(f"the broker refused {message}")
            self._settle(message, error)
        while self._lowest < self._next and self._lowest not in self._unconfirmed:
            self._lowest += 1
        if self._waiting:  # one at a time, as long as there are suspects
            self.flush()

    def _settle(self, message: OutgoingMessage, error: Exception | None) -> None:
        self._suspects = max(0, self._suspects - 1)
        if message.done.set_running_or_notify_cancel():
            if error is None:
                message.done.set_result(None)
            else:
                message.done.set_exception(error)
        self._on_settled(message)

    def _returned(self, _channel: Channel, method: Any, _properties: Any, body: bytes) -> None:
        """Mark a returned message; its confirm follows.

        The broker does not identify the message, but an equal one is just as unroutable.
        """
        for message in self._unconfirmed.values():
            if (
                message.returned is None
                and message.mandatory
                and message.routing_key == method.routing_key
                and message.exchange == method.exchange
                and message.body == body
            ):
                message.returned = (
                    f"no queue takes messages of exchange '{method.exchange}' "
                    f"with key '{method.routing_key}' ({method.reply_text})"
                )
                return

    def _closed(self, channel: Channel, reason: BaseException) -> None:
        """Find the message that caused an error, and send the others again.

        Most errors only close the channel. A protocol violation (a header larger than a frame,
        which can't be split) closes the whole connection, each time the message is sent.
        """
        if channel is not self._channel:
            return
        connection_open = channel.connection.is_open
        in_flight = list(self._unconfirmed.values())
        self.lost()
        if not connection_open and not is_protocol_fault(reason):
            return  # not caused by a message
        logs.event(log, logging.WARNING, "broker closed the publishing channel", reason=str(reason))
        named = _EXCHANGE.search(str(reason))
        refused = [each for each in in_flight if named is not None and each.exchange == named[1]]
        refusal = PublishError
        if not refused and len(in_flight) == 1:
            refused, refusal = in_flight, RefusedMessageError
        if not refused:
            self._suspects = len(in_flight)
        for message in refused:
            self._waiting.remove(message)
            self._settle(message, refusal(f"the broker refused {message}: {reason}"))
        if connection_open:
            self._reopen()
