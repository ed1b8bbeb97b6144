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
        raise _unauthorized("the Authorization header is missing, expected 'Bearer TOKEN'")
    if authorization[: len(_SCHEME)].lower() != _SCHEME:
        raise _unauthorized("the Authorization header is not of the form 'Bearer TOKEN'")
    with service.database.read() as connection:
        user = users.user_by_token(connection, authorization[len(_SCHEME) :].strip())
    if user is None:
        raise _unauthorized("the token in the Authorization header is unknown or was revoked")
    return user


def _unauthorized(message: str) -> ServiceError:
    return ServiceError(message, http_status=401, code="UNAUTHORIZED", field="Authorization")


Caller = Annotated[users.User, Depends(current_user)]
