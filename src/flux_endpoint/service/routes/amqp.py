"""Where clients find their results."""

from fastapi import APIRouter

from flux_endpoint.protocol.queues import TASK_GROUP_PREFIX
from flux_endpoint.protocol.rest import ResultConnection
from flux_endpoint.service.context import Service
from flux_endpoint.service.identity import Caller

router = APIRouter()


@router.get("/v2/get_amqp_result_connection_url")
def result_connection(service: Service, _caller: Caller) -> ResultConnection:
    """Return the broker's URL and how the queues of task groups are named."""
    return ResultConnection(
        queue_prefix=TASK_GROUP_PREFIX, connection_url=service.settings.client_amqp_url
    )
