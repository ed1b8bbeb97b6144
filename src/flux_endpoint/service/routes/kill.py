"""Routes to end a task and to change its urgency: by commands to its endpoint.

If that is offline, the service ends a task itself.
"""

import time
from uuid import UUID

from fastapi import APIRouter

from flux_endpoint.errors import AmqpError, ServiceError
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.messages import (
    Result,
    ResultErrorDetails,
    TaskKill,
    TaskUrgency,
    pack,
)
from flux_endpoint.protocol.rest import KillAnswer, KillTask, SetUrgency, UrgencyAnswer
from flux_endpoint.protocol.run_options import HOLD
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.service.commands import command_endpoint
from flux_endpoint.service.context import Service, ServiceContext
from flux_endpoint.service.errors import broker_unavailable
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.results import STORED_HEADER
from flux_endpoint.service.routes.tasks import TaskId, owned
from flux_endpoint.service.store import dependencies, endpoints, tasks
from flux_endpoint.service.store.users import User

router = APIRouter()

_TEXT = f"{ErrorCode.CANCELLED}: the task was ended on request while its endpoint was offline"


@router.post("/v2/tasks/{task_id}/kill")
def kill(
    task_id: TaskId, service: Service, caller: Caller, request: KillTask | None = None
) -> KillAnswer:
    """End a task, or send a signal to its processes. A task that has ended stays unchanged."""
    signum = request.signum if request else None
    task, endpoint = _found(service, task_id, caller)
    if task.completed_at is not None:
        return KillAnswer(task_id=task_id, status=task.status, delivered=False)
    if endpoint is None or not endpoint.is_own_make:
        name = endpoint.public_id if endpoint else task.endpoint_id
        raise ServiceError(
            f"task {task_id} can't be ended: its endpoint {name} is not one of Flux Endpoint",
            http_status=409,
            code="KILL_NOT_SUPPORTED",
            field="task_id",
        )
    # Also to an endpoint that is offline, so that it does not start the task later.
    command_endpoint(
        service, task.endpoint_id, pack(TaskKill(task_id=UUID(task_id), signum=signum))
    )
    service.audit.did(
        "asked to end a task",
        caller.name,
        endpoint_id=task.endpoint_id,
        task_id=task_id,
        signum=signum,
    )
    if signum is None and not endpoint.is_online(time.time()):
        _end(service, task_id, task.endpoint_id)
    task, _ = _found(service, task_id, caller)
    return KillAnswer(task_id=task_id, status=task.status, delivered=True)


@router.post("/v3/tasks/{task_id}/urgency")
def set_urgency(
    task_id: TaskId, service: Service, caller: Caller, request: SetUrgency
) -> UrgencyAnswer:
    """Change the urgency of a task that has not begun; 0 holds it, null is its usual one.

    The endpoint of a task that waits for others keeps it until the task arrives.
    """
    task, endpoint = _found(service, task_id, caller)
    if task.completed_at is not None:
        return UrgencyAnswer(task_id=task_id, status=task.status, delivered=False)
    if endpoint is None or endpoint.refused_options([HOLD]):
        own = endpoint is not None and endpoint.is_own_make
        why = "of an earlier release" if own else "not one of Flux Endpoint"
        name = endpoint.public_id if endpoint else task.endpoint_id
        raise ServiceError(
            f"the urgency of task {task_id} can't be changed: its endpoint {name} is {why}",
            http_status=409,
            code="URGENCY_NOT_SUPPORTED",
            field="task_id",
        )
    message = TaskUrgency(task_id=UUID(task_id), urgency=request.urgency)
    command_endpoint(service, task.endpoint_id, pack(message))
    service.audit.did(
        "asked to change an urgency",
        caller.name,
        endpoint_id=task.endpoint_id,
        task_id=task_id,
        urgency=request.urgency,
    )
    return UrgencyAnswer(task_id=task_id, status=task.status, delivered=True)


def _found(
    service: ServiceContext, task_id: str, caller: User
) -> tuple[tasks.StoredTask, endpoints.Endpoint | None]:
    """Return one of the caller's tasks, and its endpoint."""
    with service.database.read() as connection:
        task = owned(connection, task_id, caller, service.settings.keep_tasks)
        return task, endpoints.get_endpoint(connection, task.endpoint_id, deleted=True)


def _end(service: ServiceContext, task_id: str, endpoint_id: str) -> None:
    """Publish and store a task's result for an endpoint that is offline."""
    details = ResultErrorDetails(
        code=ErrorCode.CANCELLED, user_message="The task was ended on request."
    )
    body = pack(Result(task_id=UUID(task_id), data=_TEXT, error_details=details))
    # The result goes through the queue of results, so that it reaches the client even after a crash
    # here. It is also stored below, so that this request returns the new state. The header makes
    # the consumer forward it although it is stored.
    try:
        service.publisher.send(
            queues.RESULTS_EXCHANGE,
            queues.results_key(endpoint_id),
            body,
            service.settings.publish_timeout,
            headers={STORED_HEADER: True},
        )
    except AmqpError as error:
        raise broker_unavailable() from error
    with service.database.write() as connection:
        known = tasks.routes(connection, [task_id])
        counted = dependencies.Counted()
        if not known[task_id].ended:
            outcome = tasks.TaskOutcome(task_id, True, _TEXT.encode(), None, time.time())
            tasks.complete(connection, [outcome], known)
            counted = dependencies.tasks_ended(connection, {task_id: True})
    service.dependents.counted(counted)
