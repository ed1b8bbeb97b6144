"""Who a request comes from: a bearer token, looked up by its hash."""

from typing import Annotated

from fastapi import Depends, Header

from flux_endpoint.errors import ServiceError
from flux_endpoint.service.context import Service
from flux_endpoint.service.store import users

_SCHEME = "bearer "


def current_user(
    service: Service, authorization: Annotated[str | None, Header()] = None
) -> users.User:
    """Return who sends the request.

    Raises:
        ServiceError: 401, there is no token or nobody has it.
    """
    if authorization is None:
        raise unauthorized("the Authorization header is missing, expected 'Bearer TOKEN'")
    if authorization[: len(_SCHEME)].lower() != _SCHEME:
        raise unauthorized("the Authorization header is not of the form 'Bearer TOKEN'")
    with service.database.read() as connection:
        user = users.user_by_token(connection, authorization[len(_SCHEME) :].strip())
    if user is None:
        raise unauthorized("the token in the Authorization header is unknown or was revoked")
    return user


def unauthorized(message: str) -> ServiceError:
    """Return what to answer to a request without valid credentials."""
    return ServiceError(message, http_status=401, code="UNAUTHORIZED", field="Authorization")


Caller = Annotated[users.User, Depends(current_user)]
