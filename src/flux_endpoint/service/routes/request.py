"""What requests that are parsed by hand have in common."""

from typing import Annotated

from fastapi import Depends, Header, Request

from flux_endpoint.protocol.rest import IDEMPOTENCY_HEADER
from flux_endpoint.service.submissions import MAX_KEY


async def _body(request: Request) -> bytes:
    # Raw: its hash makes a repetition known, and it is parsed on the route's thread.
    return await request.body()


RawBody = Annotated[bytes, Depends(_body)]

IdempotencyKey = Annotated[
    str | None, Header(alias=IDEMPOTENCY_HEADER, min_length=1, max_length=MAX_KEY)
]
