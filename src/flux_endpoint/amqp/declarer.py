"""Declares exchanges, queues and bindings, in the order of the requests.

Everything except `check` runs on the connection's thread.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pika.data
import pika.exceptions
from pika.channel import Channel

from flux_endpoint import logs
from flux_endpoint.amqp.topology import Binding, Exchange, Queue
from flux_endpoint.errors import AmqpError

log = logging.getLogger(__name__)

Thing = Exchange | Queue | Binding


@dataclass(eq=False)
class Declaration:
    """Things to declare, and whether that is done.

    Attributes:
        things: what to declare, in this order.
        lasting: whether to declare it again after every reconnect.
        done: fails with `AmqpError` if the broker refuses one of the things.
    """

    things: tuple[Thing, ...]
    lasting: bool
    done: Future[None] = field(default_factory=Future)


class Declarer:
    """A channel on which things are declared one after the other.

    Args:
        open_channel: opens a channel if the connection is up, else does nothing.
    """

    def __init__(self, open_channel: Callable[[Callable[[Channel], None]], object]) -> None:
        self._open_channel = open_channel
        self._lasting: list[Declaration] = []
        #: While `_up`, the first one is in progress.
        self._waiting: deque[Declaration] = deque()
        self._channel: Channel | None = None
        self._up = False
        #: Number of lasting declarations at the head of `_waiting` that must be repeated.
        self._to_restore = 0
        self._on_restored: Callable[[], None] = lambda: None

    def add(self, declaration: Declaration) -> None:
        """Declare as soon as there is a connection."""
        if declaration.lasting:
            self._lasting.append(declaration)
            if not self._up:
                return  # `connected` will start with it
        self._waiting.append(declaration)
        if self._up and len(self._waiting) == 1:
            self._next()

    def connected(self, on_restored: Callable[[], None]) -> None:
        """Repeat the lasting declarations, call `on_restored`, and go on with the rest."""
        self._up = True
        passing = [each for each in self._waiting if not each.lasting]
        self._waiting = deque([*self._lasting, *passing])
        self._to_restore = len(self._lasting)
        self._on_restored = on_restored
        if not self._to_restore:
            on_restored()
        if self._waiting:
            self._next()

    def lost(self) -> None:
        """Handle the loss of the connection; unconfirmed declarations wait for the next one."""
        self._up = False
        self._channel = None

    def fail_all(self, reason: str) -> None:
        """Fail all unfinished declarations."""
        self.lost()
        for declaration in (*self._lasting, *self._waiting):
            if not declaration.done.done():
                _settle(declaration, AmqpError(reason))
        self._waiting.clear()

    def _next(self) -> None:
        if self._channel is None:
            self._open_channel(self._opened)
        else:
            self._declare(self._channel, self._waiting[0], 0)

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        self._next()

    def _declare(self, channel: Channel, declaration: Declaration, index: int) -> None:
        if index == len(declaration.things):
            self._finish(None)
            return
        _send(
            channel,
            declaration.things[index],
            lambda _frame: self._declare(channel, declaration, index + 1),
        )

    def _closed(self, channel: Channel, reason: BaseException) -> None:
        if channel is not self._channel or not channel.connection.is_open:
            return  # the connection has ended, and `lost` will be called
        self._channel = None
        if self._waiting:
            self._finish(AmqpError(f"the broker refused a declaration: {reason}"))

    def _finish(self, error: AmqpError | None) -> None:
        _settle(self._waiting.popleft(), error)
        if self._to_restore:
            self._to_restore -= 1
            if not self._to_restore:
                self._on_restored()
        if self._waiting and self._up:
            self._next()


def check(things: tuple[Thing, ...]) -> None:
    """Check whether `things` can be encoded.

    Raises:
        AmqpError: a name is too long, or an argument has a type that AMQP lacks.
    """
    for thing in things:
        try:
            match thing:
                case Binding():
                    names = [thing.exchange, thing.queue, thing.routing_key]
                case _:
                    names = [thing.name]
                    pika.data.encode_table([], dict(thing.arguments))
            for name in names:
                pika.data.encode_short_string([], name)
        except pika.exceptions.ShortStringTooLong as error:
            raise AmqpError(f"a name is longer than 255 bytes: {name}") from error
        except Exception as error:
            raise AmqpError(
                f"an argument of {thing} can't be put on the wire: {error!r}"
            ) from error


def _settle(declaration: Declaration, error: AmqpError | None) -> None:
    done = declaration.done
    if done.done():
        if error is not None:
            logs.event(log, logging.ERROR, "declaration refused", reason=str(error))
    elif done.set_running_or_notify_cancel():
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def _send(channel: Channel, thing: Thing, callback: Callable[[Any], None]) -> None:
    match thing:
        case Exchange():
            channel.exchange_declare(
                thing.name,
                thing.type,
                durable=True,
                arguments=dict(thing.arguments),
                callback=callback,
            )
        case Queue():
            channel.queue_declare(
                thing.name, durable=True, arguments=dict(thing.arguments), callback=callback
            )
        case Binding():
            channel.queue_bind(thing.queue, thing.exchange, thing.routing_key, callback=callback)
