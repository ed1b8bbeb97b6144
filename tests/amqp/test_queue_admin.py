"""Looking into a queue, emptying and deleting it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from amqp_world import PATIENCE, Hand, Sink, States, numbered
from proxy import Proxy

from flux_endpoint.amqp import AmqpConnection, QueueAdmin, QueueCount
from flux_endpoint.amqp import queue_admin as custodian_module
from flux_endpoint.errors import AmqpError

pytestmark = pytest.mark.rabbitmq
Connect = Callable[..., AmqpConnection]


@pytest.fixture
def connection(connect: Connect) -> AmqpConnection:
    connection = connect()
    assert connection.wait_connected(PATIENCE)
    return connection


@pytest.fixture
def queue_admin(connection: AmqpConnection) -> QueueAdmin:
    return QueueAdmin(connection)


def test_messages_and_consumers_are_counted(
    connection: AmqpConnection, queue_admin: QueueAdmin, queue: str, hand: Hand
) -> None:
    hand.put(queue, *numbered(3))
    hand.until_depth(queue, 3)
    assert queue_admin.count(queue).result(PATIENCE) == QueueCount(3, 0)
    sink = Sink()
    connection.consume(queue, sink, prefetch=10)
    sink.wait_for(3)
    assert queue_admin.count(queue).result(PATIENCE) == QueueCount(0, 1)


@pytest.mark.parametrize("count", [0, 1, 1500])
def test_looking_at_a_queue_returns_headers_and_keeps_the_order(
    connection: AmqpConnection, queue_admin: QueueAdmin, queue: str, hand: Hand, count: int
) -> None:
    for number in range(count):
        sent = connection.publish("", queue, b"%d" % number, headers={"number": number})
    if count:
        sent.result(PATIENCE)
    hand.until_depth(queue, count)
    for _ in range(2):
        seen = queue_admin.look(queue).result(PATIENCE)
        assert seen is not None
        assert [headers["number"] for headers in seen] == list(range(count))
    hand.until_depth(queue, count)
    assert [body for body, _ in hand.take(queue)] == numbered(count)


def test_looking_at_a_queue_includes_messages_of_a_vanished_consumer(
    connect: Connect, queue_admin: QueueAdmin, queue: str, hand: Hand
) -> None:
    def acknowledge_odd_ones(delivery):  # type: ignore[no-untyped-def]
        if delivery.headers["number"] % 2:
            delivery.ack()

    other, sink = connect(), Sink(acknowledge_odd_ones)
    other.consume(queue, sink, prefetch=10)
    for number in range(4):
        other.publish("", queue, b"x", headers={"number": number})
    sink.wait_for(4)
    assert queue_admin.look(queue).result(PATIENCE) is None
    other.close()
    hand.until_depth(queue, 2)  # a slow broker puts them back a moment after the consumer is gone
    seen = queue_admin.look(queue).result(PATIENCE)
    assert seen is not None
    assert [headers["number"] for headers in seen] == [0, 2]


def test_a_message_without_headers_shows_none(
    queue_admin: QueueAdmin, queue: str, hand: Hand
) -> None:
    hand.put(queue, b"x")
    hand.until_depth(queue, 1)
    assert queue_admin.look(queue).result(PATIENCE) == [{}]


def test_a_purge_empties_a_queue(queue_admin: QueueAdmin, queue: str, hand: Hand) -> None:
    hand.put(queue, *numbered(3))
    hand.until_depth(queue, 3)
    queue_admin.purge(queue).result(PATIENCE)
    assert hand.depth(queue) == 0


def test_a_deleted_queue_is_gone_although_it_was_in_use(
    connection: AmqpConnection, queue_admin: QueueAdmin, queue: str, hand: Hand
) -> None:
    sink = Sink()
    connection.consume(queue, sink, prefetch=1)
    hand.put(queue, b"x")
    sink.wait_for(1)
    queue_admin.delete(queue).result(PATIENCE)
    assert queue_admin.count(queue).result(PATIENCE) is None


def test_a_queue_that_is_not_there_is_no_error(queue_admin: QueueAdmin, name: str) -> None:
    assert queue_admin.count(name).result(PATIENCE) is None
    assert queue_admin.look(name).result(PATIENCE) == []
    queue_admin.purge(name).result(PATIENCE)
    queue_admin.delete(name).result(PATIENCE)


def test_a_refusal_of_the_broker_is_an_error_with_its_text(
    queue_admin: QueueAdmin, name: str, hand: Hand
) -> None:
    hand.channel.queue_declare(name, exclusive=True)  # for that connection alone
    for refused in (queue_admin.count(name), queue_admin.look(name), queue_admin.delete(name)):
        with pytest.raises(AmqpError, match=name):
            refused.result(PATIENCE)


def test_a_late_answer_is_ignored(
    connect: Connect,
    proxy: Proxy,
    proxy_url: str,
    queue: str,
    hand: Hand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hand.put(queue, b"x")
    hand.until_depth(queue, 1)
    states = States()
    connection = connect(proxy_url, on_state=states)
    assert connection.wait_connected(PATIENCE)
    begin, begun = custodian_module._Call._opened, threading.Event()
    give_up: list[Callable[[], None]] = []

    def hold_and_begin(call: Any, channel: Any) -> None:
        proxy.hold()
        begin(call, channel)
        begun.set()

    with monkeypatch.context() as patch:
        patch.setattr(custodian_module._Call, "_opened", hold_and_begin)
        patch.setattr(connection, "later", lambda _delay, action: give_up.append(action))
        looking = QueueAdmin(connection).look(queue)
        assert begun.wait(PATIENCE)
    connection.post(give_up[0])
    with pytest.raises(AmqpError, match="no answer in"):
        looking.result(PATIENCE)
    proxy.release()
    assert QueueAdmin(connection).count(queue).result(PATIENCE) == QueueCount(1, 0)
    assert [change.state for change in states.items] == ["connected"]


def test_a_lost_connection_fails_pending_requests(
    connect: Connect, proxy: Proxy, proxy_url: str, queue: str
) -> None:
    connection = connect(proxy_url)
    assert connection.wait_connected(PATIENCE)
    proxy.black_hole()
    queue_admin = QueueAdmin(connection, timeout=3600)
    waiting = queue_admin.count(queue)
    proxy.cut()
    with pytest.raises(AmqpError, match="did not do"):
        waiting.result(PATIENCE)
    with pytest.raises(AmqpError, match="no connection"):
        queue_admin.count(queue).result(PATIENCE)
    connection.close()
    with pytest.raises(AmqpError, match="was closed"):
        queue_admin.count(queue).result(PATIENCE)
