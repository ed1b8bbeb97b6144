"""Requests whose target is an absolute URL, as a client sends them to a proxy.

A client with a hard-coded service address reaches this service if it is set as the client's proxy:
`http_proxy=http://HOST:PORT`. A server must accept the absolute form (RFC 9112, section 3.2.2).
"""

from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

_SCHEMES = (b"http://", b"https://")


class AbsoluteTargets:
    """Middleware that strips scheme and host from the target, whichever HTTP parser is used.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        target = scope.get("raw_path") or b""
        if scope["type"] == "http" and target[:8].lower().startswith(_SCHEMES):
            # The host is ignored: this service forwards nothing to other hosts.
            _, _, rest = target.partition(b"://")
            path = b"/" + rest.partition(b"/")[2]
            scope = {**scope, "raw_path": path, "path": unquote(path.decode("ascii"))}
        await self._app(scope, receive, send)
