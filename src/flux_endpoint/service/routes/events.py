"""Route to read the job events of a task."""

from fastapi import APIRouter
from fastapi.responses import Response

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.rest import TaskEventsAnswer
from flux_endpoint.service.context import Service
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.routes.tasks import TaskId, json_answer, owned
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.events import events_of

router = APIRouter()


@router.get("/v2/tasks/{task_id}/events", response_model=TaskEventsAnswer)
def read(task_id: TaskId, service: Service, caller: Caller) -> Response:
    """Return the events of a task's job so far, in order of arrival."""
    with service.database.read() as connection:
        task = owned(connection, task_id, caller, service.settings.keep_tasks)
        found = events_of(connection, task_id)
        endpoint = endpoints.get_endpoint(connection, task.endpoint_id, deleted=True)
    if endpoint is not None and not endpoint.is_own_make:
        raise ServiceError(
            f"task {task_id} has no job events: its endpoint {endpoint.public_id} is not one of "
            "Flux Endpoint",
            http_status=409,
            code="EVENTS_NOT_SUPPORTED",
            field="task_id",
        )
    return json_answer({"task_id": task_id, "events": [vars(each) for each in found]})
