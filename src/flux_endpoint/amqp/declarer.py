"""Declaring exchanges, queues and bindings on a channel of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pika.channel import Channel

from flux_endpoint.amqp.topology import Binding, Exchange, Queue
from flux_endpoint.errors import AmqpError

Thing = Exchange | Queue | Binding


def declare_all(
    channel: Channel, things: Sequence[Thing], on_done: Callable[[AmqpError | None], None]
) -> None:
    """Declare `things` in order, close `channel`, and report once: `None`, or what was refused.

    A connection that is lost on the way reports nothing: the caller begins anew.
    """
    outcome: list[bool] = []
    left = len(things)

    def finish(error: AmqpError | None) -> None:
        if not outcome:
            outcome.append(True)
            on_done(error)

    def one_done(_frame: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            finish(None)
            if channel.is_open:
                channel.close()

    def closed(_channel: Channel, reason: BaseException) -> None:
        if channel.connection.is_open:
            finish(AmqpError(f"the broker refused a declaration: {reason}"))

    channel.add_on_close_callback(closed)
    for thing in things:
        _declare(channel, thing, one_done)
    if not things:
        finish(None)
        channel.close()


def _declare(channel: Channel, thing: Thing, callback: Callable[[Any], None]) -> None:
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
