"""Route for an endpoint that has lost its journal: the open tasks that it has taken."""

from typing import Annotated

from fastapi import APIRouter, Path

from flux_endpoint.errors import AmqpError, ServiceError
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.operations import TakenTasksAnswer
from flux_endpoint.protocol.rest import UuidText
from flux_endpoint.service.context import Service
from flux_endpoint.service.errors import broker_unavailable
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.routes.endpoints import owned
from flux_endpoint.service.routes.operations import Observer
from flux_endpoint.service.store import tasks

router = APIRouter()

#: Seconds that the broker has to list the messages of a queue. An endpoint waits 15 s for a reply.
QUEUE_TIMEOUT = 12.0


@router.get("/v3/endpoints/{endpoint_id}/taken")
def taken(
    endpoint_id: Annotated[UuidText, Path()], service: Service, caller: Caller, observer: Observer
) -> TakenTasksAnswer:
    """Return the open tasks that an endpoint of Flux Endpoint has taken from its queue.

    A published task has been taken if it is open and not in the queue. So the queue must have no
    consumer. A task counts as open until the service has stored its result.
    """
    endpoint = owned(service, endpoint_id, caller)
    if not endpoint.is_own_make:
        raise ServiceError(
            f"endpoint {endpoint_id} is not one of Flux Endpoint: the service tracks its tasks",
            http_status=409,
            code="ENDPOINT_NOT_PERMITTED",
            field="endpoint_id",
        )
    # Before the queue is read, so that a task that is submitted later does not count as taken.
    with service.database.read() as connection:
        published = tasks.published_and_open(connection, endpoint_id)
    if not published:
        return TakenTasksAnswer(tasks=[])
    try:
        queued = observer.queued_tasks(queues.tasks_queue(endpoint_id), QUEUE_TIMEOUT)
    except (AmqpError, TimeoutError) as error:
        raise broker_unavailable() from error
    if queued is None:
        raise ServiceError(
            f"an agent of endpoint {endpoint_id} consumes its task queue: which tasks it has taken "
            "is not known while it runs",
            http_status=409,
            code="ENDPOINT_IN_USE",
            field="endpoint_id",
        )
    return TakenTasksAnswer(tasks=[each for each in published if each not in queued])
