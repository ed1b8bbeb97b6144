"""Routes to register, read and delete functions."""

import json
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Path
from pydantic import ValidationError

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES
from flux_endpoint.protocol.rest import FunctionAnswer, RegisterFunction, UuidText
from flux_endpoint.service import buffers
from flux_endpoint.service.context import Service
from flux_endpoint.service.errors import invalid_field, invalid_request, not_json
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.routes.request import RawBody, json_body
from flux_endpoint.service.store import functions
from flux_endpoint.service.store.users import User

router = APIRouter()

FunctionId = Annotated[UuidText, Path()]


@router.post("/v3/functions", openapi_extra=json_body(RegisterFunction))
def register(body: RawBody, service: Service, caller: Caller) -> FunctionAnswer:
    """Register a function."""
    try:
        request = RegisterFunction.model_validate(json.loads(body))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise not_json() from None
    except ValidationError as error:
        raise invalid_request(error) from error
    if "\0" in request.function_name:
        raise invalid_field("function_name", "must not contain NUL")
    if request.group:
        raise invalid_field(
            "group",
            "this service has no groups to share functions with: leave it out to keep the function "
            "to yourself, or register it as public",
        )
    if request.ha_endpoint_id:
        raise invalid_field(
            "ha_endpoint_id", "this service does not support high assurance: leave it out"
        )
    code = request.function_code
    if not request.serialized:
        code = buffers.pack_source(request.function_name, code)
    parts = buffers.split(code)
    if buffers.payload_bytes(parts, code) > MAX_PAYLOAD_BYTES:
        raise ServiceError(
            f"function '{request.function_name}' is larger than {MAX_PAYLOAD_BYTES} bytes: pass "
            "data as arguments or through files",
            http_status=413,
            code="FUNCTION_TOO_LARGE",
            field="function_code",
        )
    if parts is None or len(parts) != 1:
        raise invalid_field("function_code", "is not one packed buffer (length, newline, text)")
    with service.database.write() as connection:
        service.quotas.check_functions(connection, caller.id)
        return FunctionAnswer(
            function_uuid=functions.add_function(connection, caller.id, request, code)
        )


@router.get("/v2/functions/{function_id}")
def read(function_id: FunctionId, service: Service, caller: Caller) -> dict[str, Any]:
    """Return a function as it was registered."""
    with service.database.read() as connection:
        row = _readable(connection, function_id, caller)
    return {
        "function_uuid": row.id,
        "function_name": row.name,
        "function_code": row.code.decode(),
        "description": None if row.description is None else row.description.decode(),
        "meta": row.meta,
        "public": row.public,
        "timestamp": row.created_at,
    }


@router.delete("/v2/functions/{function_id}")
def delete(function_id: FunctionId, service: Service, caller: Caller) -> dict[str, int]:
    """Delete a function. It can't be used in new submissions any more."""
    with service.database.write() as connection:
        row = _readable(connection, function_id, caller)
        if row.owner_id != caller.id:
            raise ServiceError(
                f"function {function_id} belongs to another user",
                http_status=403,
                code="FUNCTION_NOT_PERMITTED",
                field="function_id",
            )
        functions.delete_function(connection, function_id)
    return {"result": 302}  # the number that the official client expects


def _readable(connection: sa.Connection, function_id: str, caller: User) -> sa.Row[Any]:
    row = functions.get_function(connection, function_id)
    if row is None or not (row.public or row.owner_id == caller.id):
        raise ServiceError(
            f"function {function_id} is unknown",
            http_status=404,
            code="FUNCTION_NOT_FOUND",
            field="function_id",
        )
    return row
