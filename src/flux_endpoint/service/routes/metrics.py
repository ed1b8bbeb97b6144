"""Route for Prometheus; who may use it is a setting."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from flux_endpoint.errors import ServiceError
from flux_endpoint.service.context import Service
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.metrics import Exposition

router = APIRouter()

#: Stands for all users in `--metrics-users`.
EVERYBODY = "*"


async def _exposition(request: Request) -> Exposition:
    exposition = request.app.state.metrics
    assert isinstance(exposition, Exposition)
    return exposition


@router.get("/metrics", response_class=Response)
def metrics(
    service: Service, caller: Caller, exposition: Annotated[Exposition, Depends(_exposition)]
) -> Response:
    """Return the metrics of the service and its endpoints, in Prometheus' text format."""
    if {caller.name, EVERYBODY}.isdisjoint(service.settings.metrics_users):
        raise ServiceError(
            f"user {caller.name} may not read the metrics, which tell of all users: the service's "
            "operator names those who may with --metrics-users",
            http_status=403,
            code="METRICS_NOT_PERMITTED",
        )
    headers = {"Cache-Control": "no-store"}
    return Response(exposition.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4, headers=headers)
