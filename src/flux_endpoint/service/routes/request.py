"""Common parts of routes that parse the request body themselves."""

from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import BaseModel

from flux_endpoint.protocol.rest import IDEMPOTENCY_HEADER
from flux_endpoint.service.submissions import MAX_KEY


async def _body(request: Request) -> bytes:
    # Raw bytes: their hash identifies a repetition, and the route's thread parses them.
    return await request.body()


RawBody = Annotated[bytes, Depends(_body)]


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a body that the route parses itself."""
    schema = model.model_json_schema()
    named = schema.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return inlined(named[part["$ref"].rpartition("/")[2]])
        return {key: inlined(each) for key, each in part.items()}

    content = {"application/json": {"schema": inlined(schema)}}
    return {"requestBody": {"required": True, "content": content}}


IdempotencyKey = Annotated[
    str | None, Header(alias=IDEMPOTENCY_HEADER, min_length=1, max_length=MAX_KEY)
]
