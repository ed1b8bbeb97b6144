"""Deliveries and subscriptions: acknowledged, rejected, paused, cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

import pytest
from amqp_world import PATIENCE, Hand, Journal, Sink, numbered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.errors import AmqpError

pytestmark = pytest.mark.rabbitmq
Connect = Callable[..., AmqpConnection]
Answer = Literal["ack", "reject", "twice", "none"]


@pytest.fixture
def dead_letters(hand: Hand, name: str) -> str:
    """A queue that gets what is rejected from `queue_with_dead_letters`."""
    return hand.queue(f"dead-{name}")


@pytest.fixture
def queue_with_dead_letters(hand: Hand, name: str, dead_letters: str) -> str:
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead_letters}
    return hand.queue(name, **arguments)


def flushed(connection: AmqpConnection) -> None:
    """Return when the connection's thread has done what it was asked for before."""
    done = threading.Event()
    connection.post(done.set)
    assert done.wait(PATIENCE)


def test_unacknowledged_deliveries_never_exceed_the_prefetch(
    connect: Connect, queue: str, hand: Hand
) -> None:
    sink = Sink(then=None)
    connect().consume(queue, sink, prefetch=3)
    hand.put(queue, *numbered(10))
    held = sink.wait_for(3)
    hand.until_depth(queue, 7)
    assert len(sink.items) == 3
    held[0].ack()
    sink.wait_for(4)
    hand.until_depth(queue, 6)


def test_unacknowledged_deliveries_are_redelivered(
    connect: Connect, queue: str, hand: Hand
) -> None:
    hand.put(queue, *numbered(3))
    receiver, sink = connect(), Sink(then=None)
    receiver.consume(queue, sink, prefetch=10)
    sink.wait_for(3)[1].ack()
    receiver.close()
    hand.until_depth(queue, 2)
    assert hand.take(queue) == [(b"0", True), (b"2", True)]


@st.composite
def answering(draw: st.DrawFn) -> list[list[tuple[int, Answer]]]:
    """Every message's number once, with an answer, in any order, and grouped."""
    order = draw(st.permutations(range(draw(st.integers(1, 24)))))
    groups: list[list[tuple[int, Answer]]] = [[]]
    for number in order:
        if draw(st.booleans()):
            groups.append([])
        groups[-1].append(
            (number, draw(st.sampled_from(["ack", "ack", "reject", "twice", "none"])))
        )
    return groups


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(groups=answering())
def test_only_acknowledged_messages_leave_the_queue(
    connect: Connect,
    queue_with_dead_letters: str,
    dead_letters: str,
    hand: Hand,
    groups: list[list[tuple[int, Answer]]],
) -> None:
    queue = queue_with_dead_letters
    count = sum(map(len, groups))
    hand.put(queue, *numbered(count))
    receiver, sink = connect(), Sink(then=None)
    receiver.consume(queue, sink, prefetch=count)
    deliveries = sink.wait_for(count)

    def answer(group: list[tuple[int, Answer]]) -> None:  # on its thread: they go as one
        for number, what in group:
            if what in ("ack", "twice"):
                deliveries[number].ack()
            if what in ("reject", "twice"):
                deliveries[number].reject()

    for group in groups:
        receiver.post(lambda group=group: answer(group))  # type: ignore[misc]
    receiver.close()

    def given_as(*kinds: Answer) -> list[bytes]:
        chosen = sorted(number for group in groups for number, what in group if what in kinds)
        return [str(number).encode() for number in chosen]

    hand.until_depth(queue, len(given_as("none")))
    hand.until_depth(dead_letters, len(given_as("reject")))
    assert sorted(hand.take(queue)) == sorted((body, True) for body in given_as("none"))
    assert sorted(body for body, _ in hand.take(dead_letters)) == sorted(given_as("reject"))


def test_a_rejected_message_is_dead_lettered(
    connect: Connect, queue_with_dead_letters: str, dead_letters: str, hand: Hand
) -> None:
    connect().consume(queue_with_dead_letters, Sink(Delivery.reject), prefetch=10)
    hand.put(queue_with_dead_letters, b"poison")
    hand.until_depth(dead_letters, 1)
    assert hand.take(dead_letters) == [(b"poison", False)]


def test_a_message_whose_callback_raises_is_dead_lettered_and_others_are_delivered(
    connect: Connect, queue_with_dead_letters: str, dead_letters: str, hand: Hand
) -> None:
    def swallow(delivery: Delivery) -> None:
        if delivery.body == b"4":
            raise ValueError("inedible")
        delivery.ack()

    sink = Sink(swallow)
    connect().consume(queue_with_dead_letters, sink, prefetch=2)
    hand.put(queue_with_dead_letters, *numbered(10))
    sink.wait_for(10)
    hand.until_depth(dead_letters, 1)
    assert sink.bodies == numbered(10)
    assert hand.take(dead_letters) == [(b"4", False)]


def test_nothing_is_delivered_while_paused(connect: Connect, queue: str, hand: Hand) -> None:
    connection, sink = connect(), Sink()
    consumer = connection.consume(queue, sink, prefetch=10)
    hand.put(queue, b"before")
    sink.wait_for(1)
    consumer.pause()
    flushed(connection)
    hand.put(queue, b"while")
    hand.until_depth(queue, 1)
    assert sink.bodies == [b"before"]
    consumer.resume()
    sink.wait_for(2)
    assert sink.bodies == [b"before", b"while"]


def test_deliveries_can_be_acknowledged_while_paused(
    connect: Connect, queue_with_dead_letters: str, dead_letters: str, hand: Hand
) -> None:
    queue = queue_with_dead_letters
    connection, sink = connect(), Sink(then=None)
    consumer = connection.consume(queue, sink, prefetch=10)
    hand.put(queue, *numbered(4))
    first, second, third, _ = sink.wait_for(4)
    consumer.pause()
    second.ack()
    first.reject()
    third.ack()
    connection.close()
    hand.until_depth(queue, 1)
    hand.until_depth(dead_letters, 1)
    assert hand.take(queue) == [(b"3", True)]
    assert hand.take(dead_letters) == [(b"0", False)]


def test_pauses_at_any_moment_lose_nothing(connect: Connect, queue: str, hand: Hand) -> None:
    everything = numbered(400)
    connection = connect()

    def swallow(delivery: Delivery) -> None:
        if len(sink.items) % 7 == 0:
            consumer.pause()
            connection.post(consumer.resume)
        delivery.ack()

    sink = Sink(swallow)
    consumer = connection.consume(queue, sink, prefetch=20)
    hand.put(queue, *everything)
    sink.wait(lambda items: len({delivery.body for delivery in items}) == 400)
    connection.close()
    assert hand.depth(queue) == 0


def test_a_consumer_that_was_paused_before_it_began_waits(
    connect: Connect, queue: str, hand: Hand
) -> None:
    connection, sink = connect(), Sink()
    consumer = connection.consume(queue, sink, prefetch=1)
    consumer.pause()
    assert connection.wait_connected(PATIENCE)
    hand.put(queue, b"x")
    hand.until_depth(queue, 1)
    consumer.resume()
    sink.wait_for(1)


def test_a_cancelled_consumer_returns_unacknowledged_deliveries(
    connect: Connect, queue: str, hand: Hand
) -> None:
    sink = Sink(then=None)
    consumer = connect().consume(queue, sink, prefetch=10)
    hand.put(queue, *numbered(3))
    sink.wait_for(3)[0].ack()
    consumer.cancel()
    hand.until_depth(queue, 2)
    consumer.cancel()
    sink.items[1].ack()
    consumer.resume()
    assert hand.take(queue) == [(b"1", True), (b"2", True)]


def test_an_exclusive_consumer_is_replaced_when_it_ends(
    connect: Connect, queue: str, hand: Hand
) -> None:
    first, second, refusals = Sink(), Sink(), Journal[str]()
    holder = connect()
    holder.consume(queue, first, prefetch=1, exclusive=True)
    hand.put(queue, b"0")
    first.wait_for(1)
    connect().consume(queue, second, prefetch=1, exclusive=True, on_refused=refusals)
    assert "exclusive" in refusals.wait_for(1)[0]
    hand.put(queue, b"1")
    first.wait_for(2)
    holder.close()
    hand.put(queue, b"2")
    second.wait_for(1)
    assert (first.bodies, second.bodies) == ([b"0", b"1"], [b"2"])


def test_a_queue_may_be_declared_after_the_consumer_started(
    connect: Connect, name: str, hand: Hand
) -> None:
    sink, refusals = Sink(), Journal[str]()
    connect().consume(name, sink, prefetch=1, on_refused=refusals)
    assert name in refusals.wait_for(2)[0]
    hand.queue(name)
    hand.put(name, b"x")
    sink.wait_for(1)


def test_consuming_continues_after_the_queue_was_deleted_and_declared_again(
    connect: Connect, queue: str, hand: Hand
) -> None:
    sink, refusals = Sink(), Journal[str]()
    connect().consume(queue, sink, prefetch=1, on_refused=refusals)
    hand.put(queue, b"0")
    sink.wait_for(1)
    hand.channel.queue_delete(queue)
    assert refusals.wait_for(1)[0] == f"queue '{queue}' was deleted"
    hand.queue(queue)
    hand.put(queue, b"1")
    sink.wait_for(2)
    sink.items[0].ack()  # of the channel before: harmless
    hand.put(queue, b"2")
    sink.wait_for(3)


def test_a_callback_for_refusals_may_raise(connect: Connect, name: str, hand: Hand) -> None:
    def complain(_: str) -> None:
        raise ValueError("no")

    sink, refusals = Sink(), Journal[str](complain)
    connect().consume(name, sink, prefetch=1, on_refused=refusals)
    refusals.wait_for(1)
    hand.queue(name)
    hand.put(name, b"x")
    sink.wait_for(1)


def test_one_connection_serves_many_consumers(connect: Connect, hand: Hand, name: str) -> None:
    connection = connect()
    sinks = {hand.queue(f"{name}-{number}"): Sink() for number in range(20)}
    for queue, sink in sinks.items():
        connection.consume(queue, sink, prefetch=1)
        hand.put(queue, queue.encode())
    for queue, sink in sinks.items():
        sink.wait_for(1)
        assert sink.bodies == [queue.encode()]


def test_an_impossible_queue_name_is_refused_at_once(connect: Connect) -> None:
    with pytest.raises(AmqpError, match="255"):
        connect().consume("q" * 256, Sink(), prefetch=1)
