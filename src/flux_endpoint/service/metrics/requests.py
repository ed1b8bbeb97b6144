"""Middleware that counts requests by their route."""

from __future__ import annotations

import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flux_endpoint.service.metrics.counters import ServiceCounters

_KEY = "flux_endpoint.route"
#: Route of requests that were refused before a route was found, or that match none.
NO_ROUTE = "none"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
#: Answer of a request whose client has disconnected, in the words of nginx.
_CLIENT_CLOSED = 499


class CountedRequests:
    """The outermost middleware: counts each request with its status and duration.

    Args:
        app: the application.
        counters: what counts.
        endless: routes whose answers last as long as the client reads them.
    """

    def __init__(
        self, app: ASGIApp, counters: ServiceCounters, endless: frozenset[str] = frozenset()
    ) -> None:
        self._app = app
        self._counters = counters
        self._endless = endless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = _CLIENT_CLOSED
        noted: list[str] = []

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app({**scope, _KEY: noted}, receive, watched)
        finally:
            route = noted[0] if noted else NO_ROUTE
            method = scope["method"] if scope["method"] in _METHODS else "other"
            seconds = None if route in self._endless else time.perf_counter() - begun
            self._counters.answered(method, route, status, seconds)


class NotedRoutes:
    """The innermost middleware: notes which route answers, for `CountedRequests`.

    Args:
        app: the router.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        try:
            await self._app(scope, receive, send)
        finally:
            noted: Any = scope.get(_KEY)
            path = getattr(scope.get("route"), "path", None)
            if noted is not None and isinstance(path, str):
                noted.append(path)
