"""Routes for the queues from which clients get results and job events."""

from collections.abc import Sequence

from fastapi import APIRouter

from flux_endpoint.protocol import queues
from flux_endpoint.protocol.rest import (
    EventQueueRequest,
    GroupQueueAnswer,
    ResultConnection,
    ResultQueueRequest,
)
from flux_endpoint.service import submissions, topology
from flux_endpoint.service.context import Service, ServiceContext
from flux_endpoint.service.errors import broker_unavailable
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.routes.tasks import GroupId
from flux_endpoint.service.store import task_groups
from flux_endpoint.service.store.users import User

router = APIRouter()


@router.get("/v2/get_amqp_result_connection_url")
def result_connection(service: Service, caller: Caller) -> ResultConnection:
    """Return the broker's URL, and the name prefix of the queues of official clients."""
    return ResultConnection(
        queue_prefix=queues.TASK_GROUP_PREFIX, connection_url=service.access.urls.of_user(caller)
    )


@router.post("/v2/taskgroup/{group_id}/results")
def open_results(
    group_id: GroupId, request: ResultQueueRequest, service: Service, caller: Caller
) -> GroupQueueAnswer:
    """Open a client's own queue for a group's results. It exists when this returns."""
    queue = queues.task_group_queue(group_id, request.client_id)
    most = service.quotas.limits(caller.limits).max_user_queues
    service.quotas.client_queues.open(caller.id, queue, most)
    bundles = request.bundles
    submissions.join_group(service.database, service.quotas, group_id, caller.id, bundles=bundles)
    things = topology.results_of_client(group_id, request.client_id, bundles=bundles)
    with service.database.read() as connection:
        if task_groups.wants_group_queue(connection, group_id):
            # An earlier release may have declared the official clients' queue without a binding.
            things += topology.of_group(group_id)
    return _opened(service, caller, things, queue)


@router.post("/v2/taskgroup/{group_id}/events")
def open_events(
    group_id: GroupId, service: Service, caller: Caller, request: EventQueueRequest | None = None
) -> GroupQueueAnswer:
    """Open a client's queue for the events of a group's jobs. It exists when this returns."""
    client_id = request.client_id if request else None
    queue = queues.task_group_events_queue(group_id, client_id)
    most = service.quotas.limits(caller.limits).max_user_queues
    service.quotas.client_queues.open(caller.id, queue, most)
    submissions.join_group(service.database, service.quotas, group_id, caller.id)
    things = topology.events_of_client(group_id, client_id)
    return _opened(service, caller, things, queue)


def _opened(
    service: ServiceContext, caller: User, things: Sequence[topology.Declaration], queue: str
) -> GroupQueueAnswer:
    if not service.publisher.declare(things, service.settings.publish_timeout):
        raise broker_unavailable()
    return GroupQueueAnswer(queue=queue, connection_url=service.access.urls.of_user(caller))
