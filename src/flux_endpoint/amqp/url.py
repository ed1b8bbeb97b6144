"""AMQP URLs: connection parameters, an address without secrets, other ports and credentials."""

from __future__ import annotations

import math
import re
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pika
import pika.exceptions

from flux_endpoint.errors import AmqpError

_DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
#: Timeouts (s) of the TCP connection, and of all handshakes (TCP, TLS, AMQP) together.
_SOCKET_TIMEOUT, _STACK_TIMEOUT = 10, 15


def connection_parameters(url: str, *, name: str, heartbeat: float) -> pika.URLParameters:
    """Return pika's parameters for one attempt to connect to `url`.

    Args:
        url: `amqp://` or `amqps://`.
        name: the connection's name in the broker's lists.
        heartbeat: seconds, unless the URL has its own `heartbeat`.

    Raises:
        AmqpError: `url` is not an AMQP URL.
    """
    parameters = parse_url(url)
    if "heartbeat=" not in urlsplit(url).query:
        parameters.heartbeat = math.ceil(heartbeat)  # 0 would mean none
    parameters.socket_timeout = _SOCKET_TIMEOUT
    parameters.stack_timeout = _STACK_TIMEOUT
    parameters.connection_attempts = 1
    parameters.client_properties = {"connection_name": name}
    return parameters


def parse_url(url: str) -> pika.URLParameters:
    """Return pika's parameters of `url`.

    Raises:
        AmqpError: `url` is not an AMQP URL, or its host name is invalid.
    """
    if _host_of(url) is None:
        raise AmqpError(
            "not an AMQP URL: write amqp://user:password@host:port/vhost, with special characters "
            "of user, password and vhost percent-encoded"
        )
    host = urlsplit(url).hostname or ""
    try:
        host.encode("idna")  # as the address lookup does
        if any(each.isspace() or not each.isprintable() for each in host):
            raise UnicodeError
    except UnicodeError:
        raise AmqpError(f"AMQP URL: {host!r} is no name of a host") from None
    try:
        return pika.URLParameters(url)
    except (ValueError, TypeError) as error:
        raise AmqpError(f"AMQP URL for {address_of(url)} is wrong: {error}") from error


def address_of(url: str) -> str:
    """Return `host:port/vhost` of `url`, without user and password."""
    host = _host_of(url)
    if host is None:
        return "an unreadable AMQP URL"
    path = urlsplit(url).path
    vhost = unquote(path[1:]) if len(path) > 1 else "/"
    return f"{host}{'' if vhost.startswith('/') else '/'}{vhost}"


def _host_of(url: str) -> str | None:
    """Return `host:port` of `url`; `None` if it might contain part of a password."""
    try:
        parts = urlsplit(url)
        port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    except (ValueError, KeyError):  # ValueError's text may contain the password
        return None
    if not port or not parts.hostname or "@" in url[url.index(parts.netloc) + len(parts.netloc) :]:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}"


def with_port(url: str, port: int) -> str:
    """Return `url` with another port."""
    parts = urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    bare = host.rpartition(":")[0] if _has_port(host) else host
    return urlunsplit(parts._replace(netloc=f"{credentials}{at}{bare}:{port}"))


def with_credentials(url: str, user: str, password: str) -> str:
    """Return `url` with another user and password."""
    parts = urlsplit(url)
    account = f"{quote(user, safe='')}:{quote(password, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{account}@{parts.netloc.rpartition('@')[2]}"))


def without_credentials(url: str) -> str:
    """Return `url` without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]  # brackets enclose an IPv6 address


def reason_of(error: BaseException) -> str:
    """Return one readable sentence that says why a connection failed or ended."""
    causes = list(_causes(error))
    if limit := next(filter(None, map(_LIMIT.search, map(str, causes))), None):
        what = f"this account has {limit[1]} connections to the broker"
        return f"{what}, which is the limit: end some"
    for cause in causes:
        for kind, sentence in _SENTENCES:
            if isinstance(cause, kind):
                return sentence
    for cause in causes:
        if isinstance(cause, (pika.exceptions.ConnectionClosed, OSError)):
            return str(cause) or type(cause).__name__
    last = causes[-1]
    if isinstance(last, pika.exceptions.StreamLostError):
        return "the connection was cut"
    return f"{type(last).__name__}: {last}" if str(last) else type(last).__name__


#: RabbitMQ's text for the connection limit of a user or a virtual host; pika only keeps the text.
_LIMIT = re.compile(r"NOT_ALLOWED.* connection limit \((\d+)\) is reached")
_SENTENCES: tuple[tuple[type[BaseException], str], ...] = (
    (pika.exceptions.ProbableAuthenticationError, "the broker refused the user name or password"),
    (
        pika.exceptions.AuthenticationError,
        "the broker refused the user name or password",
    ),
    (
        pika.exceptions.ProbableAccessDeniedError,
        "the broker refused access to the virtual host, or there is none of that name",
    ),
    (ConnectionRefusedError, "connection refused: nothing listens there"),
    (socket.gaierror, "the host name can't be resolved"),
    (ssl.SSLCertVerificationError, "the broker's TLS certificate can't be verified"),
    (ssl.SSLError, "the TLS handshake failed (is it amqps:// on both sides?)"),
    (
        pika.exceptions.IncompatibleProtocolError,
        "the peer does not speak AMQP 0-9-1, or closed the connection at once",
    ),
    (TimeoutError, "no answer in time"),
    (pika.exceptions.ConnectionOpenAborted, "no answer in time"),  # pika's error for that
    (pika.exceptions.AMQPHeartbeatTimeout, "the broker has gone silent"),
    (ConnectionError, "the connection was cut"),
)


#: Reply codes with which a broker closes a whole connection because of something sent on it: frame,
#: syntax, command, channel, unexpected frame, resource, not allowed, not implemented, internal
#: error.
_PROTOCOL_FAULTS = frozenset({501, 502, 503, 504, 505, 506, 530, 540, 541})


def is_protocol_fault(error: BaseException) -> bool:
    """Return whether the broker closed a connection because of something sent on it."""
    return (
        isinstance(error, pika.exceptions.ConnectionClosedByBroker)
        and error.reply_code in _PROTOCOL_FAULTS
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and the errors that it wraps; pika uses both attributes and arguments."""
    queue: list[object] = [error]
    seen: set[int] = set()
    while queue:
        item = queue.pop(0)
        if isinstance(item, (list, tuple)):
            queue.extend(item)
        elif isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            queue += [
                getattr(item, "exceptions", None),
                getattr(item, "exception", None),
                item.args,
                item.__cause__,
            ]
