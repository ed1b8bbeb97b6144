"""Why a connection does not come about, in words, and never with the password."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

import pytest
from amqp_world import PATIENCE, States
from proxy import Proxy

from flux_endpoint.amqp import AmqpConnection, StateChange
from flux_endpoint.amqp import url as url_module

pytestmark = pytest.mark.rabbitmq
Connect = Callable[..., AmqpConnection]
SECRET = "s3cret-Pa55"


def with_parts(url: str, **parts: str) -> str:
    return urlunsplit(urlsplit(url)._replace(**parts))


@pytest.fixture
def refusal(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> Callable[[str | Callable[[], str]], StateChange]:
    """Connects in vain, and tells the first state; checks that the password shows nowhere."""

    def refusal(url: str | Callable[[], str]) -> StateChange:
        caplog.set_level(logging.DEBUG)
        states = States()
        connection = connect(url, on_state=states)
        changes = states.wait_for(2)
        connection.close()
        assert {change.state.value for change in changes[:2]} == {"unreachable"}
        fields = [getattr(record, "fields", {}) for record in caplog.records]
        for text in (repr(states.items), caplog.text, repr(fields)):
            assert SECRET not in text
        return changes[0]

    return refusal


Refusal = Callable[[str | Callable[[], str]], StateChange]


def test_a_wrong_password(refusal: Refusal, url: str) -> None:
    host = url.rpartition("@")[2].partition("/")[0]
    change = refusal(with_parts(url, netloc=f"guest:{SECRET}@{host}"))
    assert change.reason == "the broker refused the user name or password"
    assert change.address == f"{host}{urlsplit(url).path}"


def test_an_unknown_vhost(refusal: Refusal, url: str, name: str) -> None:
    change = refusal(with_parts(url, path=f"/{name}"))
    assert "virtual host" in change.reason
    assert name in change.address


def test_a_port_without_a_listener(refusal: Refusal, free_port: int) -> None:
    change = refusal(f"amqp://user:{SECRET}@127.0.0.1:{free_port}/v")
    assert change.reason == "connection refused: nothing listens there"
    assert change.address == f"127.0.0.1:{free_port}/v"


def test_an_unknown_host(refusal: Refusal) -> None:
    change = refusal(f"amqp://user:{SECRET}@no-such-host.invalid/")
    assert change.reason == "the host name can't be resolved"


def test_a_silent_peer(
    refusal: Refusal, proxy: Proxy, proxy_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(url_module, "_STACK_TIMEOUT", 1)
    proxy.black_hole()
    assert refusal(proxy_url).reason == "no answer in time"


def test_a_peer_that_disconnects(refusal: Refusal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        states = States()
        connection = AmqpConnection(
            f"amqp://user:{SECRET}@127.0.0.1:{port}/", name="t", on_state=states, max_backoff=0.1
        )
        connection.start()
        server.accept()[0].close()
        [change] = states.wait_for(1)
        connection.close()
    assert "does not speak AMQP" in change.reason


def test_tls_to_a_plain_port(refusal: Refusal, url: str) -> None:
    assert "TLS" in refusal(with_parts(url, scheme="amqps")).reason


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        f"http://user:{SECRET}@host/",
        f"user:{SECRET}@host:5672",
        f"amqp://user:{SECRET}/x@host/",
        f"amqp://user:{SECRET}#x@host/",
        f"amqp://user:{SECRET}?x@host/",
        f"amqp://user:{SECRET}@[::1/",
        f"amqp://user:{SECRET}@host:99999/",
    ],
)
def test_a_url_of_another_scheme(refusal: Refusal, wrong: str) -> None:
    change = refusal(wrong)
    assert change.reason.startswith("not an AMQP URL: write amqp://")
    assert change.address == "an unreadable AMQP URL"


def test_a_wrong_option_in_the_url_is_named(refusal: Refusal) -> None:
    change = refusal(f"amqp://user:{SECRET}@host/?heartbeat=often")
    assert "heartbeat" in change.reason


def test_a_callable_url_is_called_for_each_attempt(
    connect: Connect, url: str, free_port: int
) -> None:
    asked: list[str] = []

    def current() -> str:
        asked.append(f"amqp://127.0.0.1:{free_port}/" if len(asked) < 2 else url)
        return asked[-1]

    states = States()
    connect(current, on_state=states)
    states.wait_state("unreachable", "unreachable", "connected")
    assert len(asked) == 3
    assert [change.address.partition(":")[2][:5] for change in states.items[:2]] == [
        f"{free_port}/"[:5]
    ] * 2


def test_a_callable_url_may_raise(connect: Connect, url: str) -> None:
    attempts = 0

    def current() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise OSError("the service is away")
        if attempts == 2:
            raise KeyError
        return url

    states = States()
    connect(current, on_state=states)
    states.wait_state("unreachable", "unreachable", "connected")
    assert [change.reason for change in states.items] == ["the service is away", "KeyError", ""]


def test_a_callback_for_states_may_raise(connect: Connect, url: str) -> None:
    def complain(_: StateChange) -> None:
        raise ValueError("no")

    assert connect(url, on_state=States(complain)).wait_connected(PATIENCE)


def test_the_broker_shows_the_connection_by_its_name(url: str) -> None:
    parameters = url_module.connection_parameters(url, name="agent of lab", heartbeat=0.4)
    assert parameters.client_properties == {"connection_name": "agent of lab"}
    assert parameters.heartbeat == 1
