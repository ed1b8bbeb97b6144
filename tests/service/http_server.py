"""A service that listens on a TCP port of this process, with the HTTP parser of one's choice."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI


@contextlib.contextmanager
def listening(app: FastAPI | Any, how: str | uvicorn.Config = "h11") -> Iterator[int]:
    """Serve `app` on a free port, which is yielded once it answers.

    Args:
        app: an ASGI application.
        how: the HTTP parser, or uvicorn's whole configuration.
    """
    ready = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        if isinstance(how, str):
            how = uvicorn.Config(app, http=how, lifespan="on", log_config=None, access_log=False)
        server = Server(how)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        assert ready.wait(60)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
