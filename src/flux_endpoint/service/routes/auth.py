"""The part of an identity provider that the official packages need.

A client id is any UUID, and a client secret is a bearer token of this service. The answer (RFC
6749, section 4.4) has the same token as access token. So no new token is issued, and permissions
are checked in one place only.
"""

import binascii
from base64 import b64decode
from typing import Annotated, Any
from urllib.parse import parse_qs
from uuid import UUID

from fastapi import APIRouter, Header

from flux_endpoint.errors import ServiceError
from flux_endpoint.service.context import Service
from flux_endpoint.service.errors import invalid_field
from flux_endpoint.service.identity import Caller, unauthorized
from flux_endpoint.service.routes.request import RawBody
from flux_endpoint.service.store import users

router = APIRouter(prefix="/auth/v2")

#: Seconds for which a client may use the returned token before it asks again.
TOKEN_SECONDS = 48 * 3600

_GRANT = "client_credentials"
_AUTH_SERVER = "auth.globus.org"
# Name of the compute service as a resource server, and its id in the names of scopes.
_COMPUTE_SERVER = "funcx_service"
_COMPUTE_ID = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"
_SCOPE_PREFIX = "https://auth.globus.org/scopes/"
_BASIC = "basic "


@router.post("/oauth2/token")
def token(
    body: RawBody, service: Service, authorization: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """Return the caller's own token, once for each resource server of the requested scopes."""
    secret = _client_secret(authorization)
    with service.database.read() as connection:
        if users.user_by_token(connection, secret) is None:
            raise unauthorized(
                "the client secret is not a token of this service, or was revoked: "
                "GLOBUS_COMPUTE_CLIENT_SECRET must be a token of this service"
            )
    form = parse_qs(body.decode("ascii", "replace"))
    grant = form.get("grant_type", [""])[0]
    if grant != _GRANT:
        raise ServiceError(
            f"grant_type is {grant[:99]!r}, this service supports only {_GRANT!r}: set "
            "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET",
            http_status=400,
            code="UNSUPPORTED_GRANT_TYPE",
            field="grant_type",
        )
    scopes = " ".join(form.get("scope", [])).split()
    if not scopes:
        raise invalid_field("scope", "is missing")
    by_server: dict[str, list[str]] = {}
    for scope in scopes:
        by_server.setdefault(_resource_server(scope), []).append(scope)
    first, *others = [
        {
            "access_token": secret,
            "token_type": "Bearer",
            "expires_in": TOKEN_SECONDS,
            "resource_server": server,
            "scope": " ".join(asked),
        }
        for server, asked in by_server.items()
    ]
    return {**first, "other_tokens": others}


@router.post("/oauth2/token/revoke")
def revoke(_service: Service) -> dict[str, bool]:
    """Answer a client that drops its token; the token stays valid, since it is the user's."""
    return {"active": False}


@router.get("/oauth2/userinfo")
def userinfo(caller: Caller) -> dict[str, Any]:
    """Return the caller's identity (OpenID Connect Core, section 5.3)."""
    return {
        "sub": caller.id,
        "preferred_username": caller.name,
        "name": caller.name,
        "email": caller.email,
        "identity_set": [caller.identity],
    }


@router.get("/api/identities")
def identities(caller: Caller, ids: str = "") -> dict[str, Any]:
    """Return the caller's identity if it is among `ids`; other identities are not visible."""
    wanted = {each.strip().lower() for each in ids.split(",")}
    known = {**caller.identity, "id": caller.id, "status": "used"}
    return {"identities": [known] if caller.id in wanted else []}


def _client_secret(authorization: str | None) -> str:
    """Return the password of Basic authentication (RFC 7617).

    Raises:
        ServiceError: 401, the header is missing or invalid.
    """
    header = authorization or ""
    try:
        if header[: len(_BASIC)].lower() != _BASIC:
            raise ValueError
        text = b64decode(header[len(_BASIC) :], validate=True).decode()
        client_id, _, secret = text.partition(":")
        UUID(client_id)
    except (ValueError, binascii.Error):
        raise unauthorized(
            "expected the header Authorization: Basic, with a UUID as client id "
            "(GLOBUS_COMPUTE_CLIENT_ID) and a token of this service as client secret "
            "(GLOBUS_COMPUTE_CLIENT_SECRET)"
        ) from None
    return secret


def _resource_server(scope: str) -> str:
    if not scope.startswith(_SCOPE_PREFIX):
        return _AUTH_SERVER
    server = scope.removeprefix(_SCOPE_PREFIX).partition("/")[0]
    return _COMPUTE_SERVER if server == _COMPUTE_ID else server
