"""What once could stall a connection, or keep it reconnecting for ever."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from amqp_world import PATIENCE, States

from flux_endpoint.amqp import ConnectionState
from flux_endpoint.errors import PublishError

pytestmark = pytest.mark.rabbitmq


def test_a_message_that_ends_the_whole_connection_fails_alone(connect: Any, queue: str) -> None:
    """A header beyond the frame size can't be split: the broker drops who sends it."""
    connection = connect()
    good = [connection.publish("", queue, b"") for _ in range(20)]
    bad = connection.publish("", queue, b"", headers={"h": "x" * 200_000})
    good += [connection.publish("", queue, b"") for _ in range(20)]
    with pytest.raises(PublishError):
        bad.result(PATIENCE)
    for confirm in good:
        confirm.result(PATIENCE)


def test_messages_published_during_the_search_for_a_bad_message_are_sent_after_it(
    connect: Any, queue: str
) -> None:
    connection = connect()
    late: list[Any] = []
    known = threading.Event()

    def publish_more(_failed: Any) -> None:
        late.extend(connection.publish("", queue, b"late") for _ in range(5))
        known.set()

    good = [connection.publish("", queue, b"") for _ in range(10)]
    bad = connection.publish("", queue, b"", expiration=-5)
    bad.add_done_callback(publish_more)
    good += [connection.publish("", queue, b"") for _ in range(10)]
    assert known.wait(PATIENCE)
    for confirm in (*good, *late):
        confirm.result(PATIENCE)


@pytest.mark.timeout(30)
def test_a_callable_url_that_hangs_does_not_block_closing(connect: Any, url: str) -> None:
    asked, release = threading.Event(), threading.Event()

    def hang() -> str:
        asked.set()
        release.wait(120)
        return url

    connection = connect(hang)
    assert asked.wait(PATIENCE)
    confirm = connection.publish("", "q", b"")
    connection.close(0.1)
    assert isinstance(confirm.exception(PATIENCE), PublishError)
    release.set()


def test_a_cut_connection_is_reported_in_plain_words(
    connect: Any, proxy: Any, proxy_url: str
) -> None:
    states = States()
    connect(proxy_url, on_state=states)
    states.wait_state(ConnectionState.CONNECTED)
    proxy.cut()
    changes = states.wait_state(ConnectionState.LOST)
    assert next(c for c in changes if c.state is ConnectionState.LOST).reason == (
        "the connection was cut"
    )
