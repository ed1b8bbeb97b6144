"""Requests whose target is a whole URL, as a client sends them to what it takes for a proxy.

Clients with a fixed address inside reach this service by a standard variable,
`http_proxy=http://HOST:PORT`. RFC 9112, 3.2.2: a server must accept the absolute form.
"""

from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

_SCHEMES = (b"http://", b"https://")


class AbsoluteTargets:
    """Gives the application the path alone, whichever parser the HTTP server uses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        target = scope.get("raw_path") or b""
        if scope["type"] == "http" and target[:8].lower().startswith(_SCHEMES):
            # The host in it is whatever the client believes: there is no other one behind us.
            _, _, rest = target.partition(b"://")
            path = b"/" + rest.partition(b"/")[2]
            scope = {**scope, "raw_path": path, "path": unquote(path.decode("ascii"))}
        await self._app(scope, receive, send)
