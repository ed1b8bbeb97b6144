"""Clients that take the service for a proxy are answered, whichever HTTP parser is installed."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.service.conftest import NO_BROKER
from tests.service.http_server import listening

from broker_access import NOBODY_ASKS
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store.engine import Database


@pytest.fixture(params=["h11", "httptools"])
def port(request: pytest.FixtureRequest, database: Database, database_url: str) -> Iterator[int]:
    del database  # it only has to be there before the service starts
    settings = ServiceSettings(
        database_url=database_url, amqp_url=NO_BROKER, publish_timeout=0.01, **NOBODY_ASKS
    )
    with listening(create_app(settings), request.param) as port:
        yield port


def ask(port: int, target: str, *headers: str) -> tuple[int, Any]:
    """Send a request with that very target; return the status and the JSON of the answer."""
    lines = [f"GET {target} HTTP/1.1", "Host: localhost:5000", *headers, "Connection: close"]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        with connection.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "target",
    [
        "/v2/version?service=all",
        "http://localhost:5000/v2/version?service=all",
        "HTTP://LOCALHOST:5000/v2/version?service=all",
        "https://elsewhere.example.org/v2/version?service=all",
    ],
)
def test_an_absolute_url_is_handled_like_its_path(port: int, target: str) -> None:
    status, answer = ask(port, target)
    assert status == 200
    assert answer.keys() == {"api", "min_sdk_version", "min_ep_version"}


def test_an_unknown_path_in_an_absolute_url_is_a_404(port: int) -> None:
    status, answer = ask(port, "http://pypi.example.org/simple/a%20b/")
    assert status == 404
    assert answer["message"] == "there is no /simple/a b/ here"


def test_absolute_urls_need_a_token(port: int, token_of: Callable[[str], dict[str, str]]) -> None:
    url = "http://localhost:5000/v2/endpoints"
    assert ask(port, url)[0] == 401
    headers = [f"{name}: {value}" for name, value in token_of("ada").items()]
    assert ask(port, url, *headers) == (200, [])
