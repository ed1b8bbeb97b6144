"""Separate broker accounts in tests: one RabbitMQ node, with a service for each virtual host.

RabbitMQ sends its authorization requests to a single address. In tests, a dispatcher has this
address. It forwards each request to the service of the virtual host in the request; a login has no
virtual host, and is forwarded to all services.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from flux_endpoint.amqp.url import with_credentials
from ports import reserve_any

SECRET = "secret-of-the-tests"
#: Settings of a service without a broker: it gets no requests, and listens on a free port.
NOBODY_ASKS = {"authorization_url": f"http://127.0.0.1:0/{SECRET}"}

_SHARED = "shared-tests"
_FORM = "application/x-www-form-urlencoded"


class Dispatcher(ThreadingHTTPServer):
    """Forwards RabbitMQ's authorization requests to the services.

    Attributes:
        ports: ports of services by virtual host; later ones are asked first.
        asked: number of requests by kind.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ports: dict[str, list[int]] = {}
        self.asked: Counter[str] = Counter()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{SECRET}"

    def answer(self, path: str, body: bytes) -> bytes:
        question = path.rpartition("/")[2]
        self.asked[question] += 1
        vhost = parse_qs(body.decode()).get("vhost")
        ports = (
            self.ports.get(vhost[0], []) if vhost else [*chain.from_iterable(self.ports.values())]
        )
        said = (self._ask(port, path, body) for port in reversed(ports))
        return b"allow" if b"allow" in said else b"deny"

    def _ask(self, port: int, path: str, body: bytes) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            connection.request("POST", path, body, {"Content-Type": _FORM})
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return b""  # the service has ended
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Dispatcher

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.server.answer(self.path, body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        return


class SessionBroker:
    """The settings with which services in this process use separate broker accounts."""

    def __init__(self) -> None:
        self.dispatcher: Dispatcher | None = None
        self.management_url = ""
        self._ctl: Callable[..., str] | None = None
        #: Keep the services' ports from others, before they listen and after they have ended.
        self._reservations: list[socket.socket] = []

    def keeps_apart(self, dispatcher: Dispatcher, management_url: str) -> None:
        """Use a broker of this session, which sends its requests to the dispatcher.

        Args:
            dispatcher: the dispatcher.
            management_url: URL of the broker's management API.
        """
        self.dispatcher = dispatcher
        self.management_url = management_url

    def shares(self, ctl: Callable[..., str]) -> None:
        """Use a broker from the environment, which has no authorization by the service.

        Args:
            ctl: runs `rabbitmqctl` with the given arguments.
        """
        self._ctl = ctl
        with contextlib.suppress(Exception):
            ctl("add_user", _SHARED, _SHARED)

    def settings(self, amqp_url: str) -> dict[str, Any]:
        """Return the access settings of a service that uses the broker at `amqp_url`."""
        if self.dispatcher is not None:
            vhost = unquote(urlsplit(amqp_url).path[1:]) or "/"
            port, reservation = reserve_any()
            self._reservations.append(reservation)
            self.dispatcher.ports.setdefault(vhost, []).append(port)
            return {
                "authorization_url": f"http://127.0.0.1:{port}/{SECRET}",
                "management_url": self.management_url,
            }
        assert self._ctl is not None, "there is no broker yet"
        self._ctl("set_permissions", "-p", urlsplit(amqp_url).path[1:], _SHARED, ".*", ".*", ".*")
        shared = with_credentials(amqp_url, _SHARED, _SHARED)
        return {
            "shared_broker_accounts": True,
            "endpoint_amqp_url": shared,
            "client_amqp_url": shared,
        }

    def environment(self, amqp_url: str) -> dict[str, str]:
        """Return the same settings as variables for `flux-endpoint service run`."""
        return {
            f"FLUX_ENDPOINT_SERVICE_{name.upper()}": str(value)
            for name, value in self.settings(amqp_url).items()
        }


#: The only instance in this process.
session_broker = SessionBroker()
