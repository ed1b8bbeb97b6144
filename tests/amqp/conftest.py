"""A virtual host for these tests; each has queues and exchanges of its own on it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from amqp_world import Hand
from proxy import Proxy

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.amqp.url import with_port


@pytest.fixture(scope="session")
def url(broker: Any) -> Iterator[str]:
    """URL of the virtual host."""
    with broker.virtual_host("amqp-tests") as url:
        yield url


@pytest.fixture
def name() -> str:
    """A name that only this test gives to its things."""
    return uuid.uuid4().hex


@pytest.fixture
def hand(url: str) -> Iterator[Hand]:
    hand = Hand(url)
    yield hand
    hand.close()


@pytest.fixture
def queue(hand: Hand, name: str) -> str:
    """An empty queue."""
    return hand.queue(name)


@pytest.fixture
def connect(url: str) -> Iterator[Callable[..., AmqpConnection]]:
    """Makes started connections, to the virtual host unless told otherwise, and closes them."""
    made: list[AmqpConnection] = []

    def connect(target: str | Callable[[], str] = url, **options: Any) -> AmqpConnection:
        connection = AmqpConnection(
            target, name=f"test-{len(made)}", **{"max_backoff": 0.3, **options}
        )
        made.append(connection)
        connection.start()
        return connection

    yield connect
    for connection in made:
        connection.close(2)


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    parts = urlsplit(url)
    with Proxy(str(parts.hostname), parts.port or 5672) as proxy:
        yield proxy


@pytest.fixture
def proxy_url(url: str, proxy: Proxy) -> str:
    """URL of the virtual host by way of the proxy."""
    return with_port(url, proxy.port)
