"""HTTP errors: each has a JSON body with a code, a message and the field at fault."""

import logging
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flux_endpoint.errors import ServiceError
from flux_endpoint.logs import event
from flux_endpoint.protocol.limits import MAX_REQUEST_BYTES, MAX_SMALL_REQUEST_BYTES
from flux_endpoint.protocol.rest import ErrorBody
from flux_endpoint.service.store.health import database_trouble

log = logging.getLogger(__name__)

# Last path segments of requests that carry functions or payloads.
_LARGE = ("functions", "submit")

# A refused upload is read and discarded if it has at most this many bytes. A client that is still
# sending when the connection closes may never see the answer.
_DISCARD_BYTES = 4 * MAX_REQUEST_BYTES

# Maximum length of a message, which may quote a value of any length.
_MESSAGE_CHARACTERS = 2000

#: Header of every answer with status 401 (RFC 6750, section 3).
CHALLENGE = {"WWW-Authenticate": "Bearer"}

_ROUTING_ERRORS = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "REQUEST_TOO_LARGE"}


def add_handlers(app: FastAPI) -> None:
    """Make `app` answer every error with an `ErrorBody`."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(_Guard)


def invalid_request(error: ValidationError) -> ServiceError:
    """Return the error for a body that doesn't match its schema."""
    return _invalid(error.errors(include_url=False, include_context=False, include_input=False))


def invalid_field(field: str, problem: str) -> ServiceError:
    """Return the error for a field with an invalid value.

    Args:
        field: name of the field.
        problem: what is wrong with the value.
    """
    return ServiceError(
        f"field '{field}': {problem}", http_status=422, code="SEMANTICALLY_INVALID", field=field
    )


def broker_unavailable() -> ServiceError:
    """Return the error for a request that needs the broker, which is unreachable."""
    return ServiceError(
        "the service can't reach its message broker now; try again later",
        http_status=503,
        code="BROKER_UNAVAILABLE",
    )


def unknown_path(path: str) -> ServiceError:
    """Return the error for a path that has no route, or none for the caller."""
    return ServiceError(f"there is no {path} here", http_status=404, code=_ROUTING_ERRORS[404])


def endpoint_unknown(endpoint_id: str) -> ServiceError:
    """Return the error for an endpoint that doesn't exist or that the caller must not see."""
    return ServiceError(
        f"endpoint {endpoint_id} is unknown",
        http_status=404,
        code="ENDPOINT_NOT_FOUND",
        field="endpoint_id",
    )


def error_answer(
    error: ServiceError,
    *,
    request_id: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return `error` as an HTTP response.

    Args:
        error: the error.
        request_id: id of the request in the log; by default a new one.
        headers: additional headers.
    """
    text = str(error)[:_MESSAGE_CHARACTERS]
    if error.retry_after is not None:
        headers = {**(headers or {}), "Retry-After": str(error.retry_after)}
    body = ErrorBody(
        code=error.code,
        message=text,
        reason=text,
        http_status_code=error.http_status,
        request_id=request_id or str(uuid4()),
        field=error.field,
    )
    return JSONResponse(body.model_dump(exclude_none=True), error.http_status, headers)


def not_json() -> ServiceError:
    """Return the error for a body that is not JSON."""
    return ServiceError(
        "the request body is not JSON", http_status=400, code="INVALID_JSON", field="body"
    )


def _invalid(problems: list[Any]) -> ServiceError:
    problem = problems[0]
    if problem["type"] == "json_invalid":
        return not_json()
    field = ""
    for part in problem["loc"]:
        if part in {"body", "path", "query", "header"} and not field:
            continue
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
    return invalid_field(field or "body", str(problem["msg"]).removeprefix("Value error, "))


async def _service_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_answer(error, headers=CHALLENGE if error.http_status == 401 else None)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_answer(_invalid(list(error.errors())))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status == 404:
        return error_answer(unknown_path(request.url.path))
    text = {405: f"{request.method} is not allowed on {request.url.path}"}.get(
        status, str(error.detail)
    )
    code = _ROUTING_ERRORS.get(status, "REQUEST_REFUSED")
    headers = dict(error.headers) if error.headers else None
    return error_answer(ServiceError(text, http_status=status, code=code), headers=headers)


class _Guard:
    """Refuses bodies that are too large before they are read; answers 500 to an exception."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        most = MAX_REQUEST_BYTES if scope["path"].endswith(_LARGE) else MAX_SMALL_REQUEST_BYTES
        # The first 16 digits are enough: they are too many bytes already.
        declared = dict(scope["headers"]).get(b"content-length", b"0")[:16]
        try:
            if declared.isdigit() and int(declared) > most:
                if int(declared) <= _DISCARD_BYTES:
                    await _discard(receive)
                await error_answer(_too_large(most))(scope, receive, send)
                return
            await self._app(scope, _limited(receive, most), watched_send)
        except ClientDisconnect:
            pass  # the client disconnected, or was too slow, before its body was complete
        except Exception as error:
            request_id = str(uuid4())
            fields = {"request_id": request_id, "path": scope["path"], "method": scope["method"]}
            if (reason := database_trouble(error)) is not None:
                event(log, logging.ERROR, "database error", reason=error, **fields)
                if not started:
                    failure = _database_unavailable(reason)
                    await error_answer(failure, request_id=request_id)(scope, receive, send)
                return
            log.exception("request failed", extra={"fields": fields})
            if not started:
                failure = ServiceError(
                    f"internal error; the service's log has it under request_id {request_id}",
                    http_status=500,
                    code="INTERNAL_ERROR",
                )
                await error_answer(failure, request_id=request_id)(scope, receive, send)


def _database_unavailable(reason: str) -> ServiceError:
    return ServiceError(
        f"the service's database can't do this now: {reason}. Nothing of the request was stored; "
        "tell the service's operator, and try again later",
        http_status=503,
        code="DATABASE_UNAVAILABLE",
    )


def _too_large(most: int) -> ServiceError:
    return ServiceError(
        f"the request body is larger than {most} bytes: send less at once",
        http_status=413,
        code="REQUEST_TOO_LARGE",
        field="body",
    )


def _limited(receive: Receive, most: int) -> Receive:
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise _too_large(most)
        return message

    return limited


async def _discard(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
