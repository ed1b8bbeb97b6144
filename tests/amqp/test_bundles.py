"""Several messages in one: packed, and taken apart into deliveries of their own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pika
import pytest
from amqp_world import Hand, Sink
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.amqp.bundle import (
    CONTENT_TYPE,
    MAX_BYTES,
    MAX_PARTS,
    Part,
    gather,
    pack_bundle,
    unpack_bundle,
)
from flux_endpoint.errors import InvalidMessageError

Connect = Callable[..., AmqpConnection]

_headers = st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()))


@st.composite
def parts(draw: st.DrawFn) -> list[Part]:
    heads = draw(st.lists(st.binary(), min_size=1, max_size=3))
    return [
        Part(
            draw(st.binary()),
            draw(st.sampled_from(heads)),
            draw(_headers),
            draw(st.none() | st.text()),
        )
        for _ in range(draw(st.integers(1, 5)))
    ]


@given(parts=parts(), shared=_headers)
def test_unpacking_a_bundle_returns_the_packed_parts(parts, shared) -> None:
    told = [
        (each.body, each.headers, each.message_id)
        for each in unpack_bundle(pack_bundle(parts, shared))
    ]
    assert told == [(each.body, {**shared, **each.headers}, each.message_id) for each in parts]


def test_a_bundle_has_shared_content_once() -> None:
    code = b"x" * 10_000
    assert len(pack_bundle([Part(b"1", code), Part(b"2", code)])) < 11_000


@given(sizes=st.lists(st.integers(0, MAX_BYTES), max_size=40), limit=st.integers(1, 100))
def test_messages_are_gathered_in_order_and_within_the_limits(sizes, limit) -> None:
    given_parts = [Part(bytes(size)) for size in sizes]
    messages = list(gather(given_parts, limit))
    assert list(chain.from_iterable(messages)) == given_parts
    for message in messages:
        assert 1 <= len(message) <= min(limit, MAX_PARTS)
        assert len(message) == 1 or sum(len(part.rest) for part in message) <= MAX_BYTES


def test_a_head_larger_than_a_bundle_is_in_no_bundle() -> None:
    head = bytes(MAX_BYTES + 1)
    assert [len(message) for message in gather([Part(b"", head)] * 3)] == [1, 1, 1]


@given(body=st.binary())
def test_an_invalid_bundle_is_refused_with_a_reason(body) -> None:
    with pytest.raises(InvalidMessageError, match="can't be read"):
        unpack_bundle(body)


def changed(before: bytes, after: bytes) -> bytes:
    body = pack_bundle([Part(b"rest", b"head"), Part(b"more", b"head")])
    assert before in body
    whole = body[4:].replace(before, after)
    return (int.from_bytes(body[:4], "big") + len(after) - len(before)).to_bytes(4, "big") + whole


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"heads":[4]', b'"heads":[999]'),
        (b'"heads":[4]', b'"heads":[-4]'),
        (b'"heads":[4]', b'"heads":[true]'),
        (b'"heads":[4]', b'"heads":4'),
        (b'"heads":[4]', b'"heads":[]'),
        (b'"parts":[[0,', b'"parts":[[7,'),
        (b'"parts":[[0,', b'"parts":[[-1,'),
        (b'"headers":{}', b'"headers":[]'),
        (b"[0,4,{},null]", b"[0,4,{},5]"),
        (b"[0,4,{},null]", b"[0,4,null,null]"),
        (b"[0,4,{},null]", b"[0,4]"),
        (b"more", b""),
        (b"more", b"more and more"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(before: bytes, after: bytes) -> None:
    with pytest.raises(InvalidMessageError):
        unpack_bundle(changed(before, after))


def test_a_small_message_never_becomes_a_large_one() -> None:
    head = bytes(2 * MAX_BYTES)
    with pytest.raises(InvalidMessageError, match="too large together"):
        unpack_bundle(pack_bundle([Part(b"", head)] * MAX_PARTS))
    with pytest.raises(InvalidMessageError, match="more than"):
        unpack_bundle(pack_bundle([Part(b"")] * (MAX_PARTS + 1)))
    with pytest.raises(InvalidMessageError, match="no parts"):
        unpack_bundle(pack_bundle([]))


# Over a broker


def put(hand: Hand, queue: str, body: bytes, content_type: str | None = CONTENT_TYPE) -> None:
    properties = pika.BasicProperties(content_type=content_type, timestamp=7)
    hand.channel.basic_publish("", queue, body, properties)


def bundle(*bodies: bytes) -> bytes:
    return pack_bundle([Part(body, message_id=f"id {body!r}") for body in bodies], {"of": "all"})


@pytest.mark.rabbitmq
def test_each_part_is_a_delivery(connect: Connect, queue: str, hand: Hand) -> None:
    sink = Sink()
    connect().consume(queue, sink, prefetch=10, bundles=True)
    put(hand, queue, bundle(b"one", b"two"))
    put(hand, queue, b"three", None)
    deliveries = sink.wait_for(3)
    assert sink.bodies == [b"one", b"two", b"three"]
    first = deliveries[0]
    assert (first.headers, first.message_id, first.timestamp) == ({"of": "all"}, "id b'one'", 7)
    assert first.routing_key == queue
    hand.until_depth(queue, 0)


@pytest.mark.rabbitmq
def test_a_bundle_is_acknowledged_with_its_last_part(
    connect: Connect, queue: str, hand: Hand
) -> None:
    connection, sink = connect(), Sink(then=None)
    connection.consume(queue, sink, prefetch=10, bundles=True)
    put(hand, queue, bundle(b"one", b"two"))
    put(hand, queue, bundle(b"three", b"four"))
    deliveries = sink.wait_for(4)
    for number in (3, 0, 2):  # all of the second, and one of the first
        deliveries[number].ack()
    connection.close()
    hand.until_depth(queue, 1)
    again = Sink()
    connect().consume(queue, again, prefetch=10, bundles=True)
    assert [each.redelivered for each in again.wait_for(2)] == [True, True]
    assert again.bodies == [b"one", b"two"]


@pytest.mark.rabbitmq
def test_a_bundle_with_a_rejected_part_is_dead_lettered_once_all_parts_are_answered(
    connect: Connect, hand: Hand, name: str
) -> None:
    dead = hand.queue(f"dead-{name}")
    queue = hand.queue(name, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    sink = Sink(then=None)
    connect().consume(queue, sink, prefetch=10, bundles=True)
    body = bundle(b"bad", b"good")
    put(hand, queue, body)
    bad, good = sink.wait_for(2)
    bad.reject()
    put(hand, queue, b"no bundle", None)
    sink.wait_for(3)[2].ack()
    good.ack()
    hand.until_depth(dead, 1)
    assert hand.take(dead)[0][0] == body
    # One that can't be read goes there at once, and the next message is taken.
    put(hand, queue, b"nonsense")
    put(hand, queue, b"after", None)
    hand.until_depth(dead, 1)
    assert sink.wait_for(4)[3].body == b"after"
    assert hand.take(dead)[0][0] == b"nonsense"


@pytest.mark.rabbitmq
def test_a_consumer_without_bundles_gets_a_bundle_as_one_delivery(
    connect: Connect, queue: str, hand: Hand
) -> None:
    sink = Sink()
    connect().consume(queue, sink, prefetch=10)
    body = bundle(b"one", b"two")
    put(hand, queue, body)
    sink.wait_for(1)
    assert sink.bodies == [body]


@pytest.mark.rabbitmq
def test_a_callback_that_fails_for_one_part_still_gets_the_others(
    connect: Connect, queue: str, hand: Hand
) -> None:
    seen = Sink()

    def take(delivery) -> None:
        if delivery.body == b"two":
            raise RuntimeError("no")
        seen(delivery)

    connect().consume(queue, take, prefetch=10, bundles=True)
    put(hand, queue, bundle(b"one", b"two", b"three"))
    seen.wait_for(2)
    assert seen.bodies == [b"one", b"three"]
    hand.until_depth(queue, 0)
