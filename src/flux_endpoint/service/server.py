"""Runs the application as an HTTP server until a signal stops it."""

import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.logs import event
from flux_endpoint.processes import StartOrder
from flux_endpoint.processes.memory import return_large_blocks
from flux_endpoint.service.access.control import broker_access
from flux_endpoint.service.app import create_app, end_waits
from flux_endpoint.service.http_protocol import BoundedProtocol, ConnectionLimits, Connections
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.sockets import listen
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

#: Seconds that requests in progress have to finish after SIGTERM or SIGINT.
SHUTDOWN_SECONDS = 5

#: Seconds after SIGTERM or SIGINT until the process exits, even if threads are blocked. No accepted
#: task or result is lost by that.
KILL_SECONDS = 20

# Length of the listen queue. asyncio accepts this many connections at once, whether there are file
# descriptors for them or not.
_BACKLOG = 128

# File descriptors for everything except client connections: mainly the database (up to 48 threads
# with up to three each) and RabbitMQ's authorization requests.
_RESERVED_DESCRIPTORS = 224
_LEAST_CONNECTIONS = 16


def run(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: the service's settings.

    Raises:
        ConfigurationError: the service can't listen on an address, or must not without TLS; the
            database can't be used; the broker does not use this service for authorization.
    """
    order = StartOrder()
    return_large_blocks()
    listener = listen(settings.host, settings.port, "choose another --port or --host", _BACKLOG)
    with listener:
        _check_encryption(listener, settings)
        database = Database(settings.database_url)
        try:
            database.migrate()  # here, so that a failure is one error message
        finally:
            database.close()
        access = broker_access(settings)
        limits = ConnectionLimits(
            connections=_possible(settings.max_connections),
            per_address=settings.max_connections_per_address,
        )
        app = create_app(settings, access)
        server = _Server(http_config(app, limits), order.tell_ready, partial(end_waits, app))
        order.wait()
        access.start()
        access.check()
        # uvicorn raises the signal again after its shutdown: that must not look like a failure.
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: None)
        server.run(sockets=[listener])
    event(log, logging.INFO, "service stopped")


def http_config(app: FastAPI | Any, limits: ConnectionLimits) -> uvicorn.Config:
    """Return uvicorn's configuration.

    Args:
        app: the application.
        limits: limits of HTTP connections.
    """
    protocol = partial(BoundedProtocol, Connections(limits))
    return uvicorn.Config(
        app,
        http=cast("type[BoundedProtocol]", protocol),
        ws="none",
        backlog=_BACKLOG,
        log_config=None,
        access_log=False,
        lifespan="on",
        h11_max_incomplete_event_size=limits.header_bytes,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def _possible(connections: int) -> int:
    """Return how many of `connections` fit into this process's limit on open files.

    The soft limit is raised as far as necessary and permitted.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _RESERVED_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    possible = max(soft - _RESERVED_DESCRIPTORS, _LEAST_CONNECTIONS)
    event(
        log,
        logging.WARNING,
        "fewer connections than set: this process may open too few files (ulimit -n)",
        connections=possible,
        max_connections=connections,
        open_files=soft,
        open_files_needed=wanted,
    )
    return possible


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], None],
        on_shutdown: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_shutdown = on_shutdown

    def handle_exit(self, sig: int, frame: Any) -> None:
        if not self.should_exit:
            # Threads that wait for the database or the broker can't be stopped, and Python joins
            # them at exit.
            watchdog = threading.Timer(KILL_SECONDS, _kill)
            watchdog.daemon = True
            watchdog.start()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            event(log, logging.INFO, "service ready", url=f"http://{shown}:{port}")
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_shutdown()  # else it would wait for the live pages
        await super().shutdown(sockets)


def _kill() -> None:
    event(log, logging.WARNING, "service stopped while requests were still in progress")
    logging.shutdown()
    os._exit(0)


def _check_encryption(listener: socket.socket, settings: ServiceSettings) -> None:
    address = listener.getsockname()[0]
    if ip_address(address.partition("%")[0]).is_loopback:
        return
    if not settings.plain_http:
        raise ConfigurationError(
            f"on {address} tokens and tasks would cross the network unencrypted: listen on "
            "127.0.0.1 behind a web server with TLS (docs/deployment.md), or, in a network whose "
            "every member you trust, add --plain-http"
        )
    event(
        log,
        logging.WARNING,
        "tokens and tasks cross the network unencrypted, unless a web server with TLS is between",
        address=address,
    )
