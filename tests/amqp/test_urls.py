"""The helpers for AMQP URLs."""

from __future__ import annotations

import pytest

from flux_endpoint.amqp.url import address_of, connection_parameters, with_port
from flux_endpoint.errors import AmqpError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("amqp://u:p@host:1234/vhost", "host:1234/vhost"),
        ("amqp://u:p@host", "host:5672/"),
        ("amqp://u:p@host/", "host:5672/"),
        ("amqp://u:p@host/%2F", "host:5672/"),
        ("amqp://u:p@host/%2Flab", "host:5672/lab"),
        ("amqp://u:p@host/a%2Fb", "host:5672/a/b"),
        ("amqps://host/v", "host:5671/v"),
        ("amqps://u:p%40ss@[::1]:99/v", "[::1]:99/v"),
        ("amqp://u:p@ss@host/v", "host:5672/v"),
        ("amqp://host/v?heartbeat=5", "host:5672/v"),
        ("amqp://u:p/w@host/v", "an unreadable AMQP URL"),
        ("nonsense", "an unreadable AMQP URL"),
    ],
)
def test_an_address_has_no_credentials(url: str, address: str) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize(
    ("url", "changed"),
    [
        ("amqp://u:p@host:1234/v", "amqp://u:p@host:99/v"),
        ("amqp://u:p@host/v", "amqp://u:p@host:99/v"),
        ("amqps://host/%2F?heartbeat=5", "amqps://host:99/%2F?heartbeat=5"),
        ("amqp://u:p%40@[::1]/a%2Fb", "amqp://u:p%40@[::1]:99/a%2Fb"),
        ("amqp://u:p@[::1]:1234/", "amqp://u:p@[::1]:99/"),
    ],
)
def test_another_port_changes_nothing_else(url: str, changed: str) -> None:
    assert with_port(url, 99) == changed


def test_parameters_are_those_of_the_url() -> None:
    parameters = connection_parameters("amqp://u:p%40ss@[::1]:1/a%2Fb", name="n", heartbeat=7)
    assert (parameters.host, parameters.port) == ("::1", 1)
    assert (parameters.virtual_host, parameters.heartbeat) == ("a/b", 7)
    assert (parameters.credentials.username, parameters.credentials.password) == ("u", "p@ss")
    assert parameters.ssl_options is None


def test_a_heartbeat_in_the_url_wins() -> None:
    assert connection_parameters("amqp://h/?heartbeat=5", name="n", heartbeat=7).heartbeat == 5


def test_amqps_verifies_the_certificate() -> None:
    parameters = connection_parameters("amqps://host/%2F", name="n", heartbeat=7)
    assert (parameters.port, parameters.virtual_host) == (5671, "/")
    assert parameters.ssl_options.context.check_hostname


def test_a_url_of_another_scheme_is_refused() -> None:
    with pytest.raises(AmqpError, match="write amqp://"):
        connection_parameters("https://u:p@host/", name="n", heartbeat=7)
