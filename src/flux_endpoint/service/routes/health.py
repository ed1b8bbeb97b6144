"""Route to check the service; it needs no token."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from flux_endpoint.protocol.operations import HealthAnswer
from flux_endpoint.service.health import HealthCheck

router = APIRouter()


async def _check(request: Request) -> HealthCheck:
    check = request.app.state.health
    assert isinstance(check, HealthCheck)
    return check


@router.get("/health", responses={503: {"model": HealthAnswer}})
def health(check: Annotated[HealthCheck, Depends(_check)], response: Response) -> HealthAnswer:
    """Return whether database and broker can be used; the status is 503 if one can't."""
    answer = check.answer()
    if not answer.healthy:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    response.headers["Cache-Control"] = "no-store"
    return answer
