"""The end of a connection."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import wait

import pytest
from amqp_world import PATIENCE, Hand, Sink, States, numbered
from proxy import Proxy

from flux_endpoint.amqp import AmqpConnection, Queue
from flux_endpoint.errors import AmqpError, PublishError

pytestmark = pytest.mark.rabbitmq
Connect = Callable[..., AmqpConnection]


def threads_left(name: str) -> list[threading.Thread]:
    """Return the threads of that name that do not end."""
    found = [thread for thread in threading.enumerate() if thread.name == name]
    for thread in found:
        thread.join(PATIENCE)
    return [thread for thread in found if thread.is_alive()]


def test_closing_waits_for_confirms(connect: Connect, queue: str, hand: Hand) -> None:
    connection = connect()
    futures = [connection.publish("", queue, body) for body in numbered(900)]
    connection.close(PATIENCE)
    assert all(future.done() and future.exception() is None for future in futures)
    assert hand.depth(queue) == 900


def test_closing_right_after_the_start_still_sends(url: str, queue: str, hand: Hand) -> None:
    connection = AmqpConnection(url, name="test")
    connection.start()
    future = connection.publish("", queue, b"x")
    connection.close(PATIENCE)
    future.result(0)
    assert hand.depth(queue) == 1


def test_closing_sends_pending_acknowledgements(connect: Connect, queue: str, hand: Hand) -> None:
    receiver, sink = connect(), Sink(then=None)
    receiver.consume(queue, sink, prefetch=100)
    hand.put(queue, *numbered(100))
    for delivery in sink.wait_for(100):
        delivery.ack()
    receiver.close()
    assert hand.depth(queue) == 0


def test_closing_ends_the_thread_and_reports_it_once(url: str, name: str) -> None:
    states = States()
    connection = AmqpConnection(url, name=name, on_state=states)
    connection.start()
    states.wait_state("connected")
    connection.close()
    connection.close()
    assert threads_left(name) == []
    assert [change.state for change in states.items] == ["connected", "closed"]
    assert not connection.wait_connected()


def test_a_closed_connection_refuses_everything(connect: Connect) -> None:
    connection = connect()
    connection.close()
    with pytest.raises(PublishError, match="closed"):
        connection.publish("", "q", b"x")
    for future in (connection.declare(Queue("q")), connection.declare_once(Queue("q"))):
        assert isinstance(future.exception(0), AmqpError)
    connection.consume("q", Sink(), prefetch=1).cancel()
    with pytest.raises(AmqpError, match="closed"):
        connection.start()


def test_unsent_messages_fail_on_close_if_the_broker_is_unreachable(
    connect: Connect, free_port: int
) -> None:
    states = States()
    connection = connect(f"amqp://127.0.0.1:{free_port}/", on_state=states)
    states.wait_state("unreachable")
    futures = [connection.publish("", "q", body) for body in numbered(50)]
    declared = connection.declare(Queue("q")), connection.declare_once(Queue("q"))
    connection.close(60)
    assert all(isinstance(future.exception(0), PublishError) for future in futures)
    assert all(isinstance(future.exception(0), AmqpError) for future in declared)
    assert states.items[-1].state == "closed"


def test_closing_ends_an_attempt_to_connect(proxy: Proxy, proxy_url: str, name: str) -> None:
    proxy.black_hole()
    connection = AmqpConnection(proxy_url, name=name)
    connection.start()
    assert proxy.accepted.acquire(timeout=PATIENCE)
    pending = connection.publish("", "q", b"x")
    connection.close(0.1)
    assert isinstance(pending.exception(PATIENCE), PublishError)
    assert threads_left(name) == []


def test_a_connection_that_was_never_started_can_be_closed(url: str) -> None:
    connection = AmqpConnection(url, name="test")
    published, declared = connection.publish("", "q", b"x"), connection.declare(Queue("q"))
    connection.close()
    connection.close()
    assert isinstance(published.exception(0), PublishError)
    assert isinstance(declared.exception(0), AmqpError)


def test_a_callback_may_close(url: str, queue: str) -> None:
    states = States()
    connection = AmqpConnection(url, name="test", on_state=states)
    connection.start()
    connection.publish("", queue, b"x").add_done_callback(lambda _: connection.close())
    states.wait_state("closed")
    connection.close()


@pytest.mark.parametrize("reachable", [True, False])
def test_an_unclosed_connection_does_not_block_the_exit_of_the_program(
    url: str, free_port: int, reachable: bool
) -> None:
    target = url if reachable else f"amqp://127.0.0.1:{free_port}/"
    program = f"""
from flux_endpoint.amqp import AmqpConnection
connection = AmqpConnection({target!r}, name="forgotten")
connection.start()
connection.wait_connected({PATIENCE if reachable else 0.3})
connection.consume("nothing", print, prefetch=1)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_closing_while_others_publish_leaves_no_future_unresolved(
    connect: Connect, queue: str
) -> None:
    connection = connect()
    futures = []
    begun = threading.Event()

    def publish() -> None:
        while True:
            try:
                futures.append(connection.publish("", queue, b"x"))
            except PublishError:
                return
            begun.set()

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(PATIENCE)
    connection.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert wait(futures, PATIENCE).not_done == set()
