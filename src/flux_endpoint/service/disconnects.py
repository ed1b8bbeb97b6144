"""Detects that a client disconnects before it has its answer to a submission."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

from fastapi import Depends, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_KEY = "flux_endpoint.connection"


class Connection:
    """The client's connection of one request. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost = False
        self._ended = False
        self._on_end: list[Callable[[bool], None]] = []

    @property
    def is_lost(self) -> bool:
        """Whether the connection was lost before the answer was written."""
        return self._lost

    def on_end(self, callback: Callable[[bool], None]) -> None:
        """Call a function once the request has ended.

        Args:
            callback: called with `True` if the answer was written, otherwise with `False`.
        """
        with self._lock:
            if not self._ended:
                self._on_end.append(callback)
                return
        callback(not self._lost)

    def lose(self) -> None:
        """Record that the connection was lost."""
        with self._lock:
            self._lost = self._lost or not self._ended

    def end(self) -> None:
        """Record that the request has ended; its answer is written, or never will be."""
        with self._lock:
            self._ended = True
            callbacks, self._on_end = self._on_end, []
        for callback in callbacks:
            callback(not self._lost)


class WatchedSubmissions:
    """Middleware that watches a submission's connection once its body has been read.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if not (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and scope["path"].endswith("/submit")
        ):
            await self._app(scope, receive, send)
            return
        connection = Connection()
        hung_up: asyncio.Task[None] | None = None

        async def wait() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            connection.lose()

        async def watched_receive() -> Message:
            nonlocal hung_up
            if hung_up is not None:
                await hung_up
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.disconnect":
                connection.lose()
            elif not message.get("more_body"):
                hung_up = asyncio.create_task(wait())
            return message

        async def watched_send(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if last:
                await asyncio.sleep(0)  # lets `wait` see a connection that has just been lost
            await send(message)
            # A later disconnect is no loss: the answer was written.
            if last:
                connection.end()

        try:
            await self._app({**scope, _KEY: connection}, watched_receive, watched_send)
        finally:
            connection.end()
            if hung_up is not None:
                hung_up.cancel()
                with suppress(asyncio.CancelledError):
                    await hung_up


async def _connection(request: Request) -> Connection:
    connection = request.scope[_KEY]
    assert isinstance(connection, Connection)
    return connection


Watched = Annotated[Connection, Depends(_connection)]
