"""Connections that are slow, silent, large or many do not hold the service up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.service.http_server import listening

from flux_endpoint.service import http_protocol
from flux_endpoint.service.http_protocol import ConnectionLimits, Connections
from flux_endpoint.service.server import http_config
from waiting import until

LIMITS = ConnectionLimits(
    connections=4,
    per_address=0,
    header_seconds=1,
    header_bytes=4096,
    transfer_seconds=1,
    bytes_per_second=1e6,
    idle_seconds=1,
)
#: More than kernels keep of an answer that nobody reads.
LARGE = 32 * 2**20


class Application:
    """Answers /large with many bytes, /wait when told so, and else with the size of the body."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.waiting = 0
        self.go_on: asyncio.Event | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] == "lifespan.startup":
                self.go_on = asyncio.Event()
                await send({"type": "lifespan.startup.complete"})
            await send({"type": f"{message['type']}.complete"})
            return
        size = 0
        while (message := await receive())["type"] == "http.request":
            size += len(message["body"])
            if not message["more_body"]:
                break
        else:
            self.ended.append("disconnected")
            return
        if scope["path"] == "/wait":
            assert self.go_on is not None
            self.waiting += 1
            await self.go_on.wait()
        body = b" " * LARGE if scope["path"] == "/large" else str(size).encode()
        head = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})
        self.ended.append("answered")


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def serve(application: Application) -> Iterator[Callable[..., int]]:
    with contextlib.ExitStack() as stack:

        def start(limits: ConnectionLimits = LIMITS) -> int:
            return stack.enter_context(listening(application, http_config(application, limits)))

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[..., socket.socket]]:
    with contextlib.ExitStack() as stack:

        def make(port: int, *, receive_buffer: int | None = None) -> socket.socket:
            made = socket.socket()
            if receive_buffer is not None:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            made.settimeout(30)
            made.connect(("127.0.0.1", port))
            return stack.enter_context(made)

        yield make


Serve = Callable[..., int]
Connect = Callable[..., socket.socket]


def all_of(connection: socket.socket) -> bytes:
    """Return what comes until the other side ends the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def refusal(received: bytes) -> tuple[int, str]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    document = json.loads(body)
    assert document["message"]
    return int(head.split()[1]), document["code"]


def drip(connection: socket.socket, text: bytes, every: float) -> None:
    with contextlib.suppress(OSError):
        for index in range(len(text)):
            connection.sendall(text[index : index + 1])
            time.sleep(every)


def one_answer(connection: socket.socket) -> bytes:
    """Return an answer with a body of one byte or more."""
    received = b""
    while not received.partition(b"\r\n\r\n")[2]:
        received += connection.recv(65536) or b"\r\n\r\nnothing"
    return received


def get(connection: socket.socket, path: str = "/") -> bytes:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    return one_answer(connection)


def test_a_silent_connection_is_closed(serve: Serve, connect: Connect) -> None:
    begun = time.monotonic()
    assert all_of(connect(serve())) == b""
    assert 0.9 < time.monotonic() - begun < 10


def test_a_connection_is_closed_when_idle_and_not_before(serve: Serve, connect: Connect) -> None:
    connection = connect(serve())
    for _ in range(4):
        assert get(connection).startswith(b"HTTP/1.1 200")
        time.sleep(0.5)
    assert get(connection).startswith(b"HTTP/1.1 200")
    assert all_of(connection) == b""


def test_a_header_has_limited_time(serve: Serve, connect: Connect) -> None:
    connection = connect(serve())
    drip(connection, b"GET / HTTP/1.1\r\nHost: " + b"h" * 100, 0.05)
    assert refusal(all_of(connection)) == (408, "REQUEST_TIMEOUT")


def test_the_header_of_the_next_request_has_limited_time(serve: Serve, connect: Connect) -> None:
    connection = connect(serve())
    assert get(connection).startswith(b"HTTP/1.1 200")
    drip(connection, b"GET / HTTP/1.1\r\nHost: " + b"h" * 100, 0.05)
    assert refusal(all_of(connection)) == (408, "REQUEST_TIMEOUT")


@pytest.mark.parametrize("line", [b"", b"\r\n"])
def test_a_header_has_limited_size(serve: Serve, connect: Connect, line: bytes) -> None:
    connection = connect(serve())
    with contextlib.suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\n" + (b"X: " + b"x" * 100 + line) * 100)
        connection.sendall(b"x" * 2**22)
    received = all_of(connection)
    assert not received or refusal(received) == (400, "INVALID_HTTP")


@pytest.mark.parametrize(
    ("version", "lengths"),
    [
        ("1.1", ["Content-Length: 4", "Transfer-Encoding: chunked"]),
        ("1.1", ["transfer-encoding: chunked", "content-length: 12"]),
        ("1.0", ["Transfer-Encoding: chunked"]),
    ],
)
def test_a_body_with_two_lengths_is_refused(
    serve: Serve, connect: Connect, version: str, lengths: list[str]
) -> None:
    connection = connect(serve())
    head = "\r\n".join([f"POST / HTTP/{version}", "Host: h", *lengths])
    hidden = "GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n"
    connection.sendall(f"{head}\r\n\r\n2\r\nab\r\n0\r\n\r\n{hidden}".encode())
    received = all_of(connection)
    assert refusal(received) == (400, "INVALID_HTTP")
    assert received.count(b"HTTP/1.1 ") == 1


def test_a_body_has_limited_time(serve: Serve, connect: Connect, application: Application) -> None:
    connection = connect(serve())
    connection.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
    drip(connection, b"x" * 100, 0.05)
    assert refusal(all_of(connection)) == (408, "REQUEST_TIMEOUT")
    assert application.ended == ["disconnected"]


def test_a_body_that_comes_fast_enough_may_take_long(
    serve: Serve, connect: Connect, application: Application
) -> None:
    connection = connect(serve())
    connection.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\n")
    begun = time.monotonic()
    for _ in range(25):
        connection.sendall(b"x" * 200_000)
        time.sleep(0.1)
    assert one_answer(connection).endswith(b"5000000")
    assert time.monotonic() - begun > 2 * LIMITS.transfer_seconds


def test_the_rest_of_a_body_after_the_answer_has_limited_time(
    serve: Serve, connect: Connect
) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await Application()(scope, receive, send)
            return
        head = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 401, "headers": head})
        await send({"type": "http.response.body", "body": b""})

    with listening(refuse, http_config(refuse, LIMITS)) as port:
        connection = connect(port)
        connection.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < begun + 30:
                connection.sendall(b"4\r\nxxxx\r\n")
                time.sleep(0.05)
        assert time.monotonic() - begun < 10


def test_an_unread_answer_is_dropped(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "_KERNEL_BYTES", 0)
    limits = ConnectionLimits(transfer_seconds=1, bytes_per_second=LARGE)
    connection = connect(serve(limits), receive_buffer=4096)
    connection.sendall(b"GET /large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    time.sleep(5)
    assert len(all_of(connection)) < LARGE


def test_an_answer_that_is_read_slowly_comes_whole(serve: Serve, connect: Connect) -> None:
    connection = connect(serve())
    connection.sendall(b"GET /large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    received = 0
    while data := connection.recv(2**20):
        received += len(data)
        time.sleep(0.02)
    assert received > LARGE


def test_at_the_limit_the_longest_silent_connection_is_closed(
    serve: Serve, connect: Connect
) -> None:
    limits = ConnectionLimits(connections=4, header_seconds=60)
    port = serve(limits)
    connections = [connect(port) for _ in range(300)]
    for each in connections[-4:]:
        assert get(each).startswith(b"HTTP/1.1 200")
    assert all_of(connections[0]) == b""


def test_at_the_limit_of_busy_connections_new_ones_get_503(
    serve: Serve, connect: Connect, application: Application
) -> None:
    port = serve()
    working = [connect(port) for _ in range(LIMITS.connections)]
    for each in working:
        each.sendall(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")
    until(lambda: application.waiting == LIMITS.connections)
    refused = connect(port)
    refused.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    received = all_of(refused)
    assert refusal(received) == (503, "TOO_MANY_CONNECTIONS")
    assert b"retry-after: 1\r\n" in received.lower()
    assert application.go_on is not None
    application.go_on._loop.call_soon_threadsafe(application.go_on.set)  # type: ignore[attr-defined]
    for each in working:
        assert one_answer(each).startswith(b"HTTP/1.1 200")
    assert get(connect(port)).startswith(b"HTTP/1.1 200")


def test_connections_of_an_address_are_limited() -> None:
    connections = Connections(ConnectionLimits(connections=10, per_address=2))

    class Connection:
        pass

    def add(address: str) -> Any:
        made: Any = Connection()
        return made, connections.add(made, http_protocol._counted(address))

    first, refusal = add("192.0.2.1")
    assert refusal is None
    assert add("::ffff:192.0.2.1")[1] is None
    assert "your address" in str(add("192.0.2.1")[1])
    assert add("192.0.2.2")[1] is None
    assert [add("127.0.0.1")[1] for _ in range(5)] == [None] * 5
    connections.remove(first)
    assert add("192.0.2.1")[1] is None
