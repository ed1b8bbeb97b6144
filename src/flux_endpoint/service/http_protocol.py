"""HTTP/1.1 connections with limits on time, size and number.

uvicorn closes connections that are idle between two requests, and limits the size of a header. This
module adds limits on the time for receiving a header, receiving a body and sending an answer, and
on the number of connections, in total and per address.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from flux_endpoint.errors import ServiceError
from flux_endpoint.service.errors import error_answer

# Maximum number of refused connections that stay open for a moment, so that their clients can read
# the reason.
_MAX_REFUSED = 64
_REFUSED_SECONDS = 1.0
# Bytes of an answer that the kernel may buffer, so that we can't see whether the client reads them.
_KERNEL_BYTES = 2**20


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of HTTP connections.

    Attributes:
        connections: maximum number of open connections.
        per_address: maximum number of connections from one address, the loopback interface
            excepted; 0: no limit. A proxy in front of the service has one address.
        header_seconds: time limit (s) from the first byte of a request, or from the beginning of
            the connection, to the end of the header.
        header_bytes: maximum size of a header.
        transfer_seconds: time (s) that the client has, at any speed, to send a body or to read an
            answer.
        bytes_per_second: minimum average speed after that time.
        idle_seconds: maximum time (s) between two requests.
    """

    connections: int = 1024
    per_address: int = 256
    header_seconds: float = 10
    header_bytes: int = 32 * 2**10
    transfer_seconds: float = 30
    bytes_per_second: float = 16 * 2**10
    idle_seconds: int = 5


class Connections:
    """The open connections of one server. For the event loop's thread.

    Args:
        limits: the limits of connections.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._addresses: dict[BoundedProtocol, str] = {}
        self._by_address: Counter[str] = Counter()
        #: Connections without a byte of a request so far, those that are silent longest first.
        self._silent: dict[BoundedProtocol, None] = {}
        self._refused = 0

    def add(self, connection: BoundedProtocol, address: str) -> str | None:
        """Count a new connection, unless a limit is reached.

        If the total is reached, the connection that has been silent for longest is closed instead.

        Args:
            connection: the connection.
            address: the client's address; empty: it has no limit per address.

        Returns:
            Why the connection is refused, or `None`.
        """
        if 0 < self.limits.per_address <= self._by_address[address]:
            return f"there are {self.limits.per_address} connections from your address"
        if len(self._addresses) >= self.limits.connections:
            if not self._silent:
                return f"the service has {self.limits.connections} connections"
            oldest = next(iter(self._silent))
            self.remove(oldest)
            oldest.transport.abort()
        self._addresses[connection] = address
        if address:
            self._by_address[address] += 1
        return None

    def remove(self, connection: BoundedProtocol) -> None:
        """Forget a connection, if it is counted."""
        self._silent.pop(connection, None)
        address = self._addresses.pop(connection, "")
        if address:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def silent(self, connection: BoundedProtocol, is_silent: bool) -> None:
        """Record whether a connection is silent: it has sent no byte of a request so far.

        Args:
            connection: the connection; ignored if it is not counted.
            is_silent: whether it is silent.
        """
        if not is_silent:
            self._silent.pop(connection, None)
        elif connection in self._addresses:
            self._silent[connection] = None

    def may_linger(self) -> bool:
        """Return whether one more refused connection may stay open for a moment; count it."""
        if self._refused >= _MAX_REFUSED:
            return False
        self._refused += 1
        return True

    def lingered(self) -> None:
        """Record that a refused connection has been closed."""
        self._refused -= 1


class _Phase(Enum):
    """The progress of a connection's request."""

    #: No byte has arrived. uvicorn's own timer runs, unless this is the first request.
    SILENT = auto()
    HEADER = auto()
    BODY = auto()
    #: The application handles the request, or the client reads the answer.
    ANSWER = auto()
    #: The answer is written, and the rest of the body is still arriving.
    REST = auto()
    #: A limit on connections was reached.
    REFUSED = auto()


class _PlainlyFramed(h11.Connection):
    """Refuses a body whose length a proxy in front of the service may read differently.

    If a request has both framings, a proxy may use Content-Length where h11 uses chunks. A part of
    the body would then be handled as a next request that the proxy has not checked (request
    smuggling; RFC 9112, sections 6.1 and 11.2).
    """

    def next_event(self) -> Any:
        """Return the next event.

        Raises:
            h11.RemoteProtocolError: the bytes are not HTTP, or a request has two framings.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = [name for name, _ in event.headers]
            if b"transfer-encoding" in names and (
                b"content-length" in names or event.http_version < b"1.1"
            ):
                raise h11.RemoteProtocolError("a request must declare the length of its body once")
        return event


class BoundedProtocol(H11Protocol):
    """One HTTP connection, with the limits of its server.

    Args:
        connections: the connections of the server.
        arguments: arguments of uvicorn's protocol class.
    """

    def __init__(self, connections: Connections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._all = connections
        self._limits = connections.limits
        self.conn = _PlainlyFramed(h11.SERVER, self._limits.header_bytes)
        self._phase = _Phase.SILENT
        self._since = 0.0
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it."""
        # asyncio then calls `pause_writing` as soon as a byte can't be sent.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)
        refusal = self._all.add(self, _counted(self.client[0] if self.client else ""))
        if refusal is not None:
            self._refuse(refusal)
            return
        self._enter(_Phase.SILENT)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the resources of a closed connection."""
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        if self._phase is _Phase.REFUSED:
            self._all.lingered()
        self._all.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle received bytes."""
        if self._phase is _Phase.REFUSED:
            return
        if self._phase is _Phase.SILENT:
            self._enter(_Phase.HEADER)
        self._received += len(data)
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Wait for the rest of the request's body, or for the next request."""
        super().on_response_complete()
        if self._phase in (_Phase.ANSWER, _Phase.BODY):
            self._phase = _Phase.REST
        self._follow()

    def send_400_response(self, msg: str) -> None:
        """Answer 400 to bytes that are not valid HTTP, and close the connection."""
        error = ServiceError(
            f"{msg} It must be HTTP/1.1, with a header of at most {self._limits.header_bytes} "
            "bytes, and with Content-Length or Transfer-Encoding, not both",
            http_status=400,
            code="INVALID_HTTP",
        )
        self._answer_and_close(error)

    def pause_writing(self) -> None:
        """Start the timer for the client to read its answer."""
        super().pause_writing()
        size = self.transport.get_write_buffer_size() + _KERNEL_BYTES
        timeout = self._limits.transfer_seconds + size / self._limits.bytes_per_second
        self._unread = self.loop.call_later(timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timer that `pause_writing` has started: everything is sent."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _enter(self, phase: _Phase) -> None:
        if phase is self._phase and self._timer is not None:
            return
        self._phase = phase
        self._all.silent(self, phase is _Phase.SILENT)
        self._since, self._received = self.loop.time(), 0
        if self._timer is not None:
            self._timer.cancel()
        self._arm()

    def _follow(self) -> None:
        """Enter the phase that matches the parser's state."""
        state = self.conn.their_state
        if self.transport.is_closing():
            self._enter(_Phase.ANSWER)
        elif state is h11.IDLE:
            begun = bool(self.conn.trailing_data[0])
            self._enter(_Phase.HEADER if begun else _Phase.SILENT)
        elif state is h11.SEND_BODY:
            self._enter(_Phase.REST if self._phase is _Phase.REST else _Phase.BODY)
        else:
            self._enter(_Phase.ANSWER)

    def _arm(self) -> None:
        deadline = self._deadline()
        self._timer = None if deadline is None else self.loop.call_at(deadline, self._expired)

    def _deadline(self) -> float | None:
        limits = self._limits
        match self._phase:
            case _Phase.HEADER:
                return self._since + limits.header_seconds
            case _Phase.SILENT:
                return self._since + max(limits.header_seconds, limits.idle_seconds)
            case _Phase.BODY:
                expected = self._received / limits.bytes_per_second
                return self._since + limits.transfer_seconds + expected
            case _Phase.REST:
                return self._since + limits.transfer_seconds
            case _:
                return None

    def _expired(self) -> None:
        self._timer = None
        if self._phase is _Phase.BODY:
            if self.flow.read_paused:  # the application is slow, not the client: start again
                self._since, self._received = self.loop.time(), 0
            deadline = self._deadline()
            if deadline is not None and deadline > self.loop.time():
                self._arm()
                return
        if self._phase in (_Phase.SILENT, _Phase.REST):
            self.transport.abort()
            return
        what = "body" if self._phase is _Phase.BODY else "header"
        error = ServiceError(
            f"the request's {what} came too slowly", http_status=408, code="REQUEST_TIMEOUT"
        )
        self._answer_and_close(error)

    def _answer_and_close(self, error: ServiceError) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_raw(error))
        self.transport.close()

    def _refuse(self, why: str) -> None:
        self._phase = _Phase.REFUSED
        error = ServiceError(
            f"{why}, which is the limit: try again in a moment",
            http_status=503,
            code="TOO_MANY_CONNECTIONS",
        )
        if self._all.may_linger():
            self.transport.write(_raw(error))
            self.transport.write_eof()
            self._timer = self.loop.call_later(_REFUSED_SECONDS, self.transport.abort)
        else:
            self._phase = _Phase.ANSWER  # so `connection_lost` does not call `lingered`
            self.transport.abort()


def _counted(address: str) -> str:
    """Return the address for the limit per address; empty for the loopback interface."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return ""
    mapped = getattr(parsed, "ipv4_mapped", None)  # an IPv4 client of an IPv6 socket
    return "" if (mapped or parsed).is_loopback else str(mapped or parsed)


def _raw(error: ServiceError) -> bytes:
    """Return the bytes of an answer that is written without h11."""
    answer = error_answer(error, headers={"Connection": "close", "Retry-After": "1"})
    head = [f"HTTP/1.1 {error.http_status} {HTTPStatus(error.http_status).phrase}".encode()]
    head += [name + b": " + value for name, value in answer.raw_headers]
    return b"\r\n".join([*head, b"", bytes(answer.body)])
