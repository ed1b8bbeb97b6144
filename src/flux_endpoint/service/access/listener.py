"""The HTTP server for RabbitMQ's authorization requests, separate from that for users.

It has its own thread, connections and database pool, so that answers don't wait for users'
requests. RabbitMQ's HTTP backend can't send a header for authentication. So the path ends in a
secret.
"""

import asyncio
import hmac
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import cast
from urllib.parse import parse_qsl, urlsplit

import uvicorn
from starlette.types import Receive, Scope, Send

from flux_endpoint.amqp.authorization import QUESTIONS
from flux_endpoint.logs import event
from flux_endpoint.service.access.trial import TRIAL_PREFIX
from flux_endpoint.service.http_protocol import BoundedProtocol, ConnectionLimits, Connections
from flux_endpoint.service.sockets import listen

log = logging.getLogger(__name__)

#: Maximum size of a request in bytes. A name and a routing key have up to 255 bytes each, and three
#: times that when escaped.
MAX_BODY = 16 * 1024
_MAX_FIELDS = 32
#: Time limit (s) of an answer. RabbitMQ waits longer.
ANSWER_SECONDS = 5.0
_THREADS = 8
_BACKLOG = 128
#: Maximum number of connections. RabbitMQ needs few, and other clients that reach the port must not
#: use up the service's file descriptors.
MAX_CONNECTIONS = 64
_LIMITS = ConnectionLimits(connections=MAX_CONNECTIONS)
_CLOSE_TIMEOUT = 5.0

#: Last path segment of the notification that something was revoked.
REVOKED = "revoked"

Answer = Callable[[str, Mapping[str, str]], bool]


class QuestionListener:
    """Answers RabbitMQ's authorization requests over HTTP.

    Args:
        url: URL to listen on, `http://HOST:PORT/…/SECRET`; port 0: a free one.
        answer: returns whether to permit a request (kind, fields); called from several threads.
        on_revoked: called on the listener's thread when another process has revoked something.
    """

    def __init__(self, url: str, answer: Answer, on_revoked: Callable[[], None]) -> None:
        self._parts = urlsplit(url)
        self._path = self._parts.path.rstrip("/").encode()
        self._answer = answer
        self._on_revoked = on_revoked
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="broker-questions")
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        #: Whether a request had another path, so that its sender has another secret.
        self.misdirected = False

    def start(self) -> None:
        """Begin to answer requests.

        Raises:
            ConfigurationError: the server can't listen on the address.
        """
        host, port = self._parts.hostname or "", self._parts.port or 0
        self._socket = listen(host, port, "choose another in --authorization-url", _BACKLOG)
        protocol = partial(BoundedProtocol, Connections(_LIMITS))
        config = uvicorn.Config(
            self._serve,
            log_config=None,
            access_log=False,
            lifespan="off",
            http=cast("type[BoundedProtocol]", protocol),
            ws="none",
            interface="asgi3",
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="broker-questions", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering requests."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_CLOSE_TIMEOUT)
        if self._socket is not None:
            self._socket.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, text = await self._respond(scope, receive)
        headers = [
            (b"content-type", b"text/plain"),
            (b"content-length", str(len(text)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    async def _respond(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        place, _, last = scope["path"].rpartition("/")
        if not hmac.compare_digest(place.encode(), self._path):
            self.misdirected = True
            return 404, b""
        if scope["method"] != "POST":
            return 405, b"POST only: auth_http.http_method = post"
        if last == REVOKED:
            self._on_revoked()
            return 204, b""
        if last not in QUESTIONS:
            return 404, b""
        return await self._judge(last, receive)

    async def _judge(self, question: str, receive: Receive) -> tuple[int, bytes]:
        try:
            fields = _fields(await _body(receive))
            loop = asyncio.get_running_loop()
            answer = loop.run_in_executor(self._pool, self._answer, question, fields)
            allowed = await asyncio.wait_for(answer, ANSWER_SECONDS)
        except (ValueError, KeyError):
            return 400, b""
        except Exception as error:  # noqa: BLE001 - RabbitMQ refuses, and does not cache a 503
            reason = str(error) or type(error).__name__
            event(log, logging.ERROR, "an authorization request of RabbitMQ failed", reason=reason)
            return 503, b""
        if not allowed and question != "user":
            logged = {name: fields[name] for name in _LOGGED if name in fields}
            # The service tries the broker's questions with accounts that must be refused.
            is_trial = fields.get("username", "").startswith(TRIAL_PREFIX)
            level = logging.DEBUG if is_trial else logging.INFO
            event(log, level, "authorization refused", question=question, **logged)
        return 200, b"allow" if allowed else b"deny"


_LOGGED = ("username", "vhost", "resource", "name", "permission", "routing_key")


async def _body(receive: Receive) -> bytes:
    """Return a request's body.

    Raises:
        ValueError: it is too large or incomplete.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ValueError("the request broke off")
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise ValueError(f"more than {MAX_BODY} bytes")
        if not message.get("more_body"):
            return bytes(body)


def _fields(body: bytes) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        ValueError: it is not a form, or has a field twice.
    """
    pairs = parse_qsl(
        body.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict"
    )
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field occurs twice")
    return fields
