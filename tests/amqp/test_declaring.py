"""Declaring exchanges, queues and bindings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from amqp_world import PATIENCE, Hand, Sink

from flux_endpoint.amqp import AmqpConnection, Binding, Exchange, Queue
from flux_endpoint.errors import AmqpError

pytestmark = pytest.mark.rabbitmq
Connect = Callable[..., AmqpConnection]


def test_declarations_before_the_start_are_complete_when_connected(
    url: str, name: str, hand: Hand
) -> None:
    connection = AmqpConnection(url, name="test")
    declared = connection.declare(Exchange(name), Queue(name), Binding(name, name, "key"))
    with connection:
        assert connection.wait_connected(PATIENCE)
        assert declared.done()
        connection.publish(name, "key", b"x").result(PATIENCE)
    assert hand.depth(name) == 1


def test_declarations_are_made_in_the_requested_order(connect: Connect, name: str) -> None:
    connection = connect()
    futures = []
    for number in range(30):
        own = f"{name}-{number}"
        futures += [
            connection.declare_once(Exchange(own)),
            connection.declare_once(Queue(own)),
            connection.declare_once(Binding(own, own, "key")),
        ]
    for future in futures:
        future.result(PATIENCE)
    connection.publish(f"{name}-29", "key", b"x").result(PATIENCE)


def test_an_empty_declaration_completes_at_once(connect: Connect) -> None:
    connect().declare().result(PATIENCE)
    connect().declare_once().result(PATIENCE)


@pytest.mark.parametrize("method", ["declare", "declare_once"])
def test_a_refused_declaration_fails_and_the_connection_stays_usable(
    connect: Connect, queue: str, method: str, hand: Hand
) -> None:
    connection, sink = connect(), Sink()
    declare = getattr(connection, method)
    refused = declare(Queue(queue, {"x-max-length": 3}))
    other = declare(Queue(f"{queue}-other"))
    with pytest.raises(AmqpError, match=f"refused.*{queue}"):
        refused.result(PATIENCE)
    other.result(PATIENCE)
    connection.consume(queue, sink, prefetch=1)
    connection.publish("", queue, b"x").result(PATIENCE)
    sink.wait_for(1)


def test_a_refused_declaration_does_not_prevent_the_connection(url: str, queue: str) -> None:
    connection = AmqpConnection(url, name="test")
    refused = connection.declare(Queue(queue, {"x-max-length": 3}))
    good = connection.declare(Queue(f"{queue}-other"))
    with connection:
        assert connection.wait_connected(PATIENCE)
        assert isinstance(refused.exception(0), AmqpError)
        good.result(0)


@pytest.mark.parametrize(
    "thing",
    [Queue("q" * 256), Queue("q", {"x": object()}), Binding("e" * 256, "q", "k")],
    ids=["long name", "argument", "long exchange"],
)
def test_a_declaration_that_cannot_be_encoded_is_refused_at_once(
    connect: Connect, thing: Queue | Binding, queue: str
) -> None:
    connection = connect()
    with pytest.raises(AmqpError, match=r"longer than 255|can't be put on the wire"):
        connection.declare(thing).result(0)
    connection.declare(Queue(queue)).result(PATIENCE)
