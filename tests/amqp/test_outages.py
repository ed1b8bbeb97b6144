"""What an outage of the network, or of the broker, does not lose."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from amqp_world import PATIENCE, Hand, Journal, Sink, States, numbered
from proxy import Proxy

from flux_endpoint.amqp import AmqpConnection, Binding, Delivery, Exchange, Queue
from flux_endpoint.errors import PublishError, UnroutableError

pytestmark = pytest.mark.rabbitmq
Connect = Callable[..., AmqpConnection]


@pytest.mark.parametrize("size", [1, 30_000, 100_000, 250_000])
def test_a_cut_while_publishing_loses_no_message(
    connect: Connect, proxy: Proxy, proxy_url: str, queue: str, hand: Hand, size: int
) -> None:
    bodies = [body.rjust(100) for body in numbered(2000)]
    states = States()
    connection = connect(proxy_url, on_state=states)
    assert connection.wait_connected(PATIENCE)
    proxy.cut_after(size)
    futures = [connection.publish("", queue, body) for body in bodies]
    for future in futures:
        future.result(PATIENCE)
    states.wait_state("connected", "lost", "connected")
    arrived = [body for body, _ in hand.take(queue)]
    assert set(arrived) == set(bodies)
    assert list(dict.fromkeys(arrived)) == bodies  # first copies keep their order


def test_many_cuts_lose_no_message(
    connect: Connect, proxy: Proxy, proxy_url: str, queue: str
) -> None:
    bodies = numbered(600)
    sink = Sink()
    connect(proxy_url).consume(queue, sink, prefetch=20)
    sender = connect(proxy_url)
    futures = []
    for number, body in enumerate(bodies):
        futures.append(sender.publish("", queue, body))
        if number % 200 == 100:
            sink.wait(lambda items, least=number // 2: len(items) > least)  # type: ignore[misc]
            proxy.cut()
    for future in futures:
        future.result(PATIENCE)
    sink.wait(lambda items: {delivery.body for delivery in items} == set(bodies))


def test_unacknowledged_messages_are_redelivered_after_a_cut_and_late_answers_ignored(
    connect: Connect, proxy: Proxy, proxy_url: str, queue: str, hand: Hand
) -> None:
    receiver, sink = connect(proxy_url), Sink(then=None)
    receiver.consume(queue, sink, prefetch=10)
    hand.put(queue, *numbered(5))
    old = sink.wait_for(5)
    proxy.cut()
    again = sink.wait_for(10)[5:]
    assert sorted(delivery.body for delivery in again) == numbered(5)
    assert all(delivery.redelivered for delivery in again)
    for delivery in old:
        delivery.ack()
    again[0].ack()
    hand.put(queue, b"more")
    sink.wait_for(11)
    receiver.close()
    left = sorted({*numbered(5), b"more"} - {again[0].body})
    hand.until_depth(queue, len(left))
    assert sorted(body for body, _ in hand.take(queue)) == left


def test_a_paused_consumer_stays_paused_through_a_cut(
    connect: Connect, proxy: Proxy, proxy_url: str, queue: str, hand: Hand
) -> None:
    states, sink = States(), Sink()
    connection = connect(proxy_url, on_state=states)
    consumer = connection.consume(queue, sink, prefetch=1)
    consumer.pause()
    states.wait_state("connected")
    proxy.cut()
    states.wait_state("connected", "lost", "connected")
    hand.put(queue, b"x")
    hand.until_depth(queue, 1)
    assert sink.items == []
    consumer.resume()
    sink.wait_for(1)


def test_a_refused_subscription_is_made_once_after_a_cut(
    connect: Connect,
    proxy: Proxy,
    proxy_url: str,
    name: str,
    hand: Hand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A retry that was due when the connection broke must not subscribe a second time."""
    connection, sink, refusals = connect(proxy_url), Sink(then=None), Journal[str]()
    retries: list[Callable[[], None]] = []
    monkeypatch.setattr(connection, "later", lambda _delay, retry: retries.append(retry))
    connection.consume(name, sink, prefetch=2, on_refused=refusals)
    refusals.wait_for(1)
    hand.queue(name)
    hand.put(name, *numbered(5))
    proxy.cut()
    sink.wait_for(2)
    [late] = retries
    connection.post(late)
    for _ in range(5):  # time enough for what it must not do
        connection.declare_once(Queue(name)).result(PATIENCE)
    assert hand.consumers(name) == 1
    assert len(sink.items) == 2


def test_the_states_of_an_outage_come_in_order(
    connect: Connect, proxy: Proxy, proxy_url: str
) -> None:
    states = States()
    connection = connect(proxy_url, on_state=states)
    states.wait_state("connected")
    proxy.stop()
    states.wait_state("connected", "lost", "unreachable", "unreachable")
    assert not connection.wait_connected(0)
    proxy.start()
    states.wait_state("unreachable", "connected")
    assert connection.wait_connected(0)
    connection.close()
    names = [change.state.value for change in states.items]
    between = names[2:-2]
    assert names == ["connected", "lost", *between, "connected", "closed"]
    assert set(between) == {"unreachable"}
    for change in states.items:
        trying = change.state in ("lost", "unreachable")
        assert (change.retry_in > 0) == trying
        assert bool(change.reason) == trying
        assert change.address.startswith(f"127.0.0.1:{proxy.port}/")


def test_a_peer_that_falls_silent_is_given_up(
    connect: Connect, proxy: Proxy, proxy_url: str, queue: str, hand: Hand
) -> None:
    states = States()
    connection = connect(proxy_url, on_state=states, heartbeat=1)
    states.wait_state("connected")
    proxy.black_hole()
    pending = connection.publish("", queue, b"x")
    lost = next(change for change in states.wait_state("lost") if change.state == "lost")
    assert lost.reason
    proxy.stop()
    proxy.start()
    pending.result(PATIENCE)
    assert hand.depth(queue) == 1


def test_closing_does_not_wait_for_a_silent_peer(
    connect: Connect, proxy: Proxy, proxy_url: str
) -> None:
    states = States()
    connection = connect(proxy_url, on_state=states)
    states.wait_state("connected")
    proxy.black_hole()
    pending = connection.publish("", "q", b"x")
    connection.close(0.1)
    assert isinstance(pending.exception(PATIENCE), PublishError)
    assert [change.state for change in states.wait_for(2)] == ["connected", "closed"]


def test_lasting_declarations_are_repeated_before_anything_is_published(
    connect: Connect, proxy: Proxy, proxy_url: str, name: str, hand: Hand
) -> None:
    states, sink = States(), Sink()
    connection = connect(proxy_url, on_state=states)
    things = (Exchange(name, "topic"), Queue(name), Binding(name, name, "*.results"))
    connection.declare(*things).result(PATIENCE)
    connection.consume(name, sink, prefetch=1)
    proxy.stop()
    states.wait_state("lost")
    pending = connection.publish(name, "a.results", b"x")
    hand.channel.exchange_delete(name)
    hand.channel.queue_delete(name)
    proxy.start()
    pending.result(PATIENCE)
    sink.wait_for(1)


def test_single_declarations_are_not_repeated(
    connect: Connect, proxy: Proxy, proxy_url: str, name: str, hand: Hand
) -> None:
    states = States()
    connection = connect(proxy_url, on_state=states)
    connection.declare_once(Queue(name)).result(PATIENCE)
    proxy.stop()
    states.wait_state("lost")
    hand.channel.queue_delete(name)
    proxy.start()
    with pytest.raises(UnroutableError):
        connection.publish("", name, b"x").result(PATIENCE)


def test_declarations_during_an_outage_are_made_after_it(
    connect: Connect, proxy: Proxy, proxy_url: str, name: str
) -> None:
    states = States()
    connection = connect(proxy_url, on_state=states)
    states.wait_state("connected")
    proxy.stop()
    states.wait_state("lost")
    once = connection.declare_once(Queue(f"{name}-once"))
    lasting = connection.declare(Queue(f"{name}-lasting"))
    assert not once.done()
    proxy.start()
    once.result(PATIENCE)
    lasting.result(PATIENCE)
    for queue in (f"{name}-once", f"{name}-lasting"):
        connection.publish("", queue, b"x").result(PATIENCE)


def test_declarations_survive_cuts_at_any_moment(
    connect: Connect, proxy: Proxy, proxy_url: str, name: str
) -> None:
    connection = connect(proxy_url)
    futures = []
    for number in range(60):
        if number % 20 == 10:
            futures[-1].result(PATIENCE)
            proxy.cut_after(200)
        declare = connection.declare if number % 2 else connection.declare_once
        futures.append(declare(Queue(f"{name}-{number}")))
    for future in futures:
        future.result(PATIENCE)


def test_rejections_survive_a_cut_as_redeliveries(
    connect: Connect, proxy: Proxy, proxy_url: str, queue: str, hand: Hand
) -> None:
    sink = Sink(Delivery.ack)
    connect(proxy_url).consume(queue, sink, prefetch=5)
    hand.put(queue, *numbered(50))
    sink.wait_for(10)
    proxy.cut()
    hand.put(queue, *[b"later-" + body for body in numbered(50)])
    sink.wait(lambda items: len({delivery.body for delivery in items}) == 100)


def test_an_error_within_pika_ends_the_connection_but_not_its_thread(
    connect: Connect, queue: str, hand: Hand
) -> None:
    states, sink = States(), Sink()
    connection = connect(on_state=states)
    connection.consume(queue, sink, prefetch=10)
    states.wait_state("connected")

    def fail() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    connection._ioloop.add_callback_threadsafe(fail)
    states.wait_state("connected", "lost", "connected")
    hand.put(queue, b"after")
    assert [each.body for each in sink.wait_for(1)] == [b"after"]
    connection.publish("", queue, b"published").result(PATIENCE)


def test_an_error_within_pika_during_an_attempt_is_followed_by_another(
    url: str, queue: str, hand: Hand
) -> None:
    states, sink = States(), Sink()
    connection = AmqpConnection(url, name="fails", on_state=states, max_backoff=0.3)

    def fail() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    connection._ioloop.add_callback_threadsafe(fail)  # before anything of the attempt's
    connection.start()
    connection.consume(queue, sink, prefetch=10)
    states.wait_state("unreachable", "connected")
    hand.put(queue, b"after")
    sink.wait_for(1)
    connection.close()
    assert sink.bodies == [b"after"]
