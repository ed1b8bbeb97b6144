"""Published messages are confirmed, or fail with a reason."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
from amqp_world import PATIENCE, Hand, Journal, Sink, numbered

from flux_endpoint.amqp import AmqpConnection, Exchange, Queue
from flux_endpoint.amqp import connection as connection_module
from flux_endpoint.errors import PublishError, UnroutableError

pytestmark = pytest.mark.rabbitmq
Connect = Callable[..., AmqpConnection]


def test_thousands_of_messages_arrive_once_and_in_order(connect: Connect, queue: str) -> None:
    sink, bodies = Sink(), numbered(5000)
    connect().consume(queue, sink, prefetch=200)
    sender = connect()
    futures = [sender.publish("", queue, body) for body in bodies]
    for future in futures:
        future.result(PATIENCE)
    sink.wait_for(5000)
    assert sink.bodies == bodies


def test_acknowledged_messages_are_not_redelivered(
    connect: Connect, queue: str, hand: Hand
) -> None:
    sink = Sink()
    receiver = connect()
    receiver.consume(queue, sink, prefetch=10)
    hand.put(queue, *numbered(100))
    sink.wait_for(100)
    receiver.close()
    assert hand.depth(queue) == 0


def test_properties_arrive(connect: Connect, queue: str) -> None:
    sink = Sink()
    connection = connect()
    connection.consume(queue, sink, prefetch=1)
    connection.publish(
        "", queue, b"body", headers={"a": 1, "b": "c"}, timestamp=1_700_000_000, message_id="m"
    ).result(PATIENCE)
    [delivery] = sink.wait_for(1)
    assert (delivery.body, delivery.headers) == (b"body", {"a": 1, "b": "c"})
    assert (delivery.exchange, delivery.routing_key) == ("", queue)
    assert (delivery.timestamp, delivery.message_id) == (1_700_000_000, "m")
    assert not delivery.redelivered


def test_a_large_body_arrives_whole(connect: Connect, queue: str) -> None:
    body = bytes(range(256)) * (13 * 4096)
    sink = Sink()
    connect().consume(queue, sink, prefetch=1)
    connect().publish("", queue, body).result(PATIENCE)
    sink.wait_for(1)
    assert sink.bodies == [body]


def test_a_message_without_a_queue_is_unroutable(connect: Connect, name: str) -> None:
    with pytest.raises(UnroutableError, match=name):
        connect().publish("", name, b"x").result(PATIENCE)


def test_equal_unroutable_messages_fail_each(connect: Connect, name: str) -> None:
    connection = connect()
    for future in [connection.publish("", name, b"same") for _ in range(2)]:
        assert isinstance(future.exception(PATIENCE), UnroutableError)


def test_only_the_unroutable_messages_of_a_burst_fail(
    connect: Connect, queue: str, name: str, hand: Hand
) -> None:
    connection = connect()
    lost = f"nowhere-{name}"
    kinds = [(queue, True), (lost, False), (lost, True)]  # (key, mandatory)
    sent = [
        (key, mandatory, connection.publish("", key, b"same", mandatory=mandatory))
        for _ in range(100)
        for key, mandatory in kinds
    ]
    for key, mandatory, future in sent:
        error = future.exception(PATIENCE)
        assert isinstance(error, UnroutableError) == (key == lost and mandatory), error
    assert hand.depth(queue) == 100


def test_an_unknown_exchange_fails_its_messages_and_no_others(
    connect: Connect, queue: str, name: str, hand: Hand
) -> None:
    connection = connect()
    sent = []
    for number, body in enumerate(numbered(300)):
        exchange = f"missing-{name}" if number % 10 == 5 else ""
        sent.append((exchange, connection.publish(exchange, queue, body)))
    for exchange, future in sent:
        error = future.exception(PATIENCE)
        if exchange:
            assert isinstance(error, PublishError)
            assert exchange in str(error)
        else:
            assert error is None
    arrived = {body for body, _ in hand.take(queue)}
    assert arrived == {body for number, body in enumerate(numbered(300)) if number % 10 != 5}


def test_a_message_that_the_broker_can_not_take_fails_alone(
    connect: Connect, queue: str, hand: Hand
) -> None:
    connection = connect()
    # The broker reads the expiration, and closes the channel without naming the message.
    sent = [
        connection.publish("", queue, body, expiration=-1 if body == b"20" else None)
        for body in numbered(40)
    ]
    errors = [future.exception(PATIENCE) for future in sent]
    assert isinstance(errors.pop(20), PublishError)
    assert errors == [None] * 39
    connection.publish("", queue, b"later").result(PATIENCE)


@pytest.mark.parametrize(
    ("key", "options"),
    [("k" * 300, {}), ("k", {"headers": {"object": object()}}), ("k", {"timestamp": "noon"})],
    ids=["long key", "header", "timestamp"],
)
def test_a_message_that_can_not_be_encoded_fails_alone(
    connect: Connect, queue: str, key: str, options: dict[str, object]
) -> None:
    connection = connect()
    assert connection.wait_connected(PATIENCE)
    with pytest.raises(PublishError, match="can't be put on the wire"):
        connection.publish("", key, b"x", **options).result(PATIENCE)  # type: ignore[arg-type]
    connection.publish("", queue, b"x").result(PATIENCE)


def test_a_full_queue_that_refuses_fails_the_message(
    connect: Connect, hand: Hand, name: str
) -> None:
    full = hand.queue(name, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    connection = connect()
    errors = [connection.publish("", full, b"x").exception(PATIENCE) for _ in range(3)]
    assert errors[0] is None
    assert [type(error) for error in errors[1:]] == [PublishError] * 2


def test_a_dropped_future_has_no_effect(connect: Connect, queue: str) -> None:
    connection = connect()
    connection.publish("", queue, b"x").cancel()
    connection.publish("", queue, b"x").result(PATIENCE)


def blocked_publisher(
    connection: AmqpConnection, queue: str
) -> tuple[threading.Thread, Journal[str]]:
    """A thread that publishes ten messages, and what became of each call."""
    ends = Journal[str]()

    def publish() -> None:
        try:
            for _ in range(10):
                connection.publish("", queue, b"x" * 100)
                ends("published")
        except PublishError:
            ends("refused")

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    return thread, ends


@pytest.mark.parametrize("by", ["count", "size"])
def test_publishing_blocks_while_too_many_messages_are_unconfirmed(
    connect: Connect, url: str, queue: str, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "size":
        monkeypatch.setattr(connection_module, "_MAX_UNCONFIRMED_BYTES", 350)
    gate = threading.Event()

    def url_in_time() -> str:
        gate.wait(PATIENCE)
        return url

    connection = connect(url_in_time, max_unconfirmed=4 if by == "count" else 1000)
    thread, ends = blocked_publisher(connection, queue)
    ends.wait_for(4)
    thread.join(0.2)
    assert thread.is_alive()
    assert ends.items == ["published"] * 4
    gate.set()
    thread.join(PATIENCE)
    assert ends.items == ["published"] * 10


def test_closing_unblocks_a_publisher(connect: Connect, free_port: int) -> None:
    connection = connect(f"amqp://127.0.0.1:{free_port}/", max_unconfirmed=4)
    thread, ends = blocked_publisher(connection, "q")
    connection.close()
    thread.join(PATIENCE)
    assert ends.items[-1] == "refused"
    assert ends.items.count("published") <= 4


def test_publishing_in_a_callback_never_blocks(connect: Connect, queue: str, name: str) -> None:
    connection = connect(max_unconfirmed=1)
    connection.declare(Exchange(name), Queue(name + "-2")).result(PATIENCE)
    sink = Sink()
    connection.consume(name + "-2", sink, prefetch=10)

    def forward(_: object) -> None:
        for body in numbered(20):
            connection.publish("", name + "-2", body)

    connection.publish("", queue, b"x").add_done_callback(forward)
    sink.wait_for(20)
    assert sink.bodies == numbered(20)


def test_an_alarm_of_the_broker_and_its_end_are_reported(
    connect: Connect, queue: str, broker: Any
) -> None:
    told: SimpleQueue[str] = SimpleQueue()
    connection = connect(on_alarm=told.put)
    with broker.alarm():
        sent = connection.publish("", queue, b"waits")
        assert told.get(timeout=PATIENCE) == connection.alarm == "low on memory"
        assert not sent.done()
    assert told.get(timeout=PATIENCE) == connection.alarm == ""
    sent.result(PATIENCE)
