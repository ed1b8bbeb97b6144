"""Serving the application over HTTP until a signal ends it."""

import logging
import signal
import socket

import uvicorn

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.logs import event
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

#: Seconds that requests under way have to finish after SIGTERM or SIGINT.
SHUTDOWN_SECONDS = 5

_BACKLOG = 2048


def run(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: the address can't be listened on, or the database not used.
    """
    listener = _listen(settings.host, settings.port)
    with listener:
        database = Database(settings.database_url)
        try:
            database.migrate()  # here, where a failure is one sentence
        finally:
            database.close()
        server = _Server(
            uvicorn.Config(
                create_app(settings),
                log_config=None,
                access_log=False,
                lifespan="on",
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        # uvicorn raises the signal again when it has shut down: that must not look like a failure.
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: None)
        server.run(sockets=[listener])
    event(log, logging.INFO, "service stopped")


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            event(log, logging.INFO, "service ready", url=f"http://{shown}:{port}")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: it can't be a name of a host at all
        reason = getattr(error, "strerror", None) or "that is no name of a host"
        raise ConfigurationError(
            f"can't listen on {host}:{port}: {reason}; choose another --port or --host"
        ) from error
    return listener
