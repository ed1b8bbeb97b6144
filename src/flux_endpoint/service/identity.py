"""Authentication: the bearer token of a request is looked up before the body is read."""

import time
from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Request
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from flux_endpoint.errors import ServiceError
from flux_endpoint.service.audit import ServiceAudit
from flux_endpoint.service.context import ServiceContext
from flux_endpoint.service.errors import CHALLENGE, error_answer, unknown_path
from flux_endpoint.service.page.sessions import Sessions
from flux_endpoint.service.quotas import RequestRate
from flux_endpoint.service.scope import TokenScope, endpoint_token_permits, needed_scope
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database

#: Routes that need no token in the header. They are for programs that may have none yet. They take
#: a small body or none, and check credentials themselves.
OPEN_PATHS = frozenset(
    {
        "/",
        "/health",
        "/v2/version",
        "/auth/v2/oauth2/token",
        "/auth/v2/oauth2/token/revoke",
        "/page/session",
    }
)
#: Prefix of the page's files, which need no token either.
OPEN_PREFIX = "/page/static/"
#: Prefix of the routes that a session of the page may use instead of a token, by its cookie.
PAGE_PREFIX = "/page/"

_SCHEME = "bearer "
_KEY = "flux_endpoint.user"


class Authentication:
    """Middleware that refuses requests without a valid token before it reads their bodies.

    Args:
        app: the application.
        rate: limits the requests of each user.
    """

    def __init__(self, app: ASGIApp, rate: RequestRate) -> None:
        self._app = app
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        header = dict(scope["headers"]).get(b"authorization")
        authorization = None if header is None else header.decode("latin-1")
        context = scope["app"].state.context
        user = None
        try:
            session = _session(scope, context.sessions) if authorization is None else None
            user = await to_thread.run_sync(_user, context, authorization, session)
            _check_scope(user, scope)
        except ServiceError as error:
            if any(route.matches(scope)[0] is not Match.NONE for route in scope["app"].routes):
                headers = CHALLENGE if error.http_status == HTTPStatus.UNAUTHORIZED else None
                await to_thread.run_sync(_record, context.audit, scope, user, error)
                await error_answer(error, headers=headers)(scope, receive, send)
                return
            user = None  # there is no such path: the application answers 404
        scope = {**scope, _KEY: user}
        if user is None:
            await self._app(scope, receive, send)
            return
        try:
            own_limit = context.quotas.limits(user.limits).max_user_requests
            with self._rate.one(user.endpoint_id or user.id, own_limit):
                await self._app(scope, receive, send)
        except ServiceError as error:  # from the rate limit: the application handles its own errors
            await error_answer(error)(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIX)


def _session(scope: Scope, sessions: Sessions) -> str | None:
    """Return the token's hash of a request by the page.

    Raises:
        ServiceError: 401, the page is not logged in any more.
    """
    if not scope["path"].startswith(PAGE_PREFIX):
        return None
    cookie = Request(scope).cookies.get(sessions.cookie)
    if cookie is None:
        return None
    token_hash = sessions.token_hash(cookie)
    if token_hash is None:
        raise unauthorized("the session has ended: log in again (flux-endpoint dashboard)")
    return token_hash


def _user(context: ServiceContext, authorization: str | None, session: str | None) -> users.User:
    if session is None:
        user = _bearer(context.database, authorization)
    else:
        with context.database.read() as connection:
            found = users.user_by_hash(connection, session)
        if found is None:
            raise unauthorized("the token that you logged in with has expired or was revoked")
        user = found
    context.token_use.note(user)
    return user


def _bearer(database: Database, authorization: str | None) -> users.User:
    if authorization is None:
        raise unauthorized("the Authorization header is missing, expected 'Bearer TOKEN'")
    if authorization[: len(_SCHEME)].lower() != _SCHEME:
        raise unauthorized("the Authorization header is not of the form 'Bearer TOKEN'")
    with database.read() as connection:
        token = authorization[len(_SCHEME) :].strip()
        user = users.user_by_token(connection, token)
        expired = users.expired_at(connection, token) if user is None else None
        disabled = user is None and users.is_disabled(connection, token)
    if disabled:
        raise unauthorized(
            "the user of the token in the Authorization header is disabled: ask the service's "
            "administrator"
        )
    if expired is not None:
        raise unauthorized(
            "the token in the Authorization header expired on "
            f"{time.strftime('%Y-%m-%d', time.gmtime(expired))}: ask your site for a new one"
        )
    if user is None:
        raise unauthorized("the token in the Authorization header is unknown or was revoked")
    return user


def _record(
    audit: ServiceAudit, scope: Scope, user: users.User | None, error: ServiceError
) -> None:
    """Record a refusal in the audit log, with the owner of an endpoint token that was misused."""
    audit.refused(
        "request refused",
        address_of(scope),
        code=error.code,
        reason=str(error),
        request=f"{scope['method']} {scope['path']}",
        user=user and user.name,
        token_of=user and user.endpoint_id,
    )


def address_of(scope: Scope) -> str:
    """Return the client's address of a request; behind a proxy, the proxy's."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _check_scope(user: users.User, scope: Scope) -> None:
    """Refuse a request that the token does not permit.

    Raises:
        ServiceError: 403, the token is an endpoint's and does not permit the request, or its scopes
            do not; 404, the request is an administrator's, and the token is not.
    """
    endpoint_id = user.endpoint_id
    needed = needed_scope(scope["method"], scope["path"])
    if needed is TokenScope.ADMIN:
        if endpoint_id is not None or needed not in user.scopes:
            raise unknown_path(Request(scope).url.path)
        return
    if endpoint_id is not None and not endpoint_token_permits(
        endpoint_id, scope["method"], scope["path"]
    ):
        raise ServiceError(
            f"this token is only valid for running endpoint {endpoint_id}: use a token of your own",
            http_status=HTTPStatus.FORBIDDEN,
            code="ENDPOINT_TOKEN",
            field="Authorization",
        )
    if endpoint_id is None and needed not in user.scopes:
        has = ", ".join(sorted(user.scopes))
        raise ServiceError(
            f"this token does not permit that: it needs the scope '{needed}', and has {has}. Ask "
            "your site for a token with this scope",
            http_status=HTTPStatus.FORBIDDEN,
            code="TOKEN_SCOPE",
            field="Authorization",
        )


# async, since FastAPI would run a plain function in another thread for each request.
async def _current_user(request: Request) -> users.User:
    user = request.scope[_KEY]
    assert isinstance(user, users.User)
    return user


def caller_id(scope: Scope) -> str:
    """Return the id of the request's user; empty for a route that needs no token."""
    user = scope.get(_KEY)
    return user.id if isinstance(user, users.User) else ""


def unauthorized(message: str) -> ServiceError:
    """Return the error for a request without valid credentials."""
    return ServiceError(message, http_status=401, code="UNAUTHORIZED", field="Authorization")


Caller = Annotated[users.User, Depends(_current_user)]
