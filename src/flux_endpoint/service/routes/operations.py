"""Routes for monitoring: the state of the service, the state of an endpoint, lists of tasks."""

import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from flux_endpoint import __version__
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.operations import (
    ENDED_STATES,
    OPEN_STATES,
    Absence,
    EndpointStateAnswer,
    ListedState,
    ListedTask,
    ListTasks,
    ServiceStatusAnswer,
    TaskRecord,
    TasksAnswer,
)
from flux_endpoint.protocol.rest import UuidText
from flux_endpoint.service import topology
from flux_endpoint.service.context import Service
from flux_endpoint.service.disclosure import shown_report
from flux_endpoint.service.errors import invalid_field
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.observer import BrokerObserver
from flux_endpoint.service.routes.endpoints import visible
from flux_endpoint.service.routes.tasks import TaskId, unknown_task
from flux_endpoint.service.store.endpoints import Endpoint, heartbeat_period
from flux_endpoint.service.store.health import database_health
from flux_endpoint.service.store.listing import PagePosition, Wanted, newest_tasks
from flux_endpoint.service.store.listing import task_record as find_record

router = APIRouter()

#: Seconds that the broker has to report the lengths of queues.
QUEUE_TIMEOUT = 2.0

# Time of import: each service has its own process.
_STARTED = time.time()


async def _observer(request: Request) -> BrokerObserver:
    observer = request.app.state.observer
    assert isinstance(observer, BrokerObserver)
    return observer


Observer = Annotated[BrokerObserver, Depends(_observer)]


@router.get("/v3/status")
def service_status(service: Service, caller: Caller, observer: Observer) -> ServiceStatusAnswer:
    """Return the state of the service, its database and its broker."""
    return ServiceStatusAnswer(
        version=__version__,
        user=caller.name,
        started=_STARTED,
        time=time.time(),
        database=database_health(service.database),
        broker=observer.broker(),
        queues=observer.queues(topology.SERVICE_QUEUES, QUEUE_TIMEOUT),
    )


@router.get("/v3/endpoints/{endpoint_id}/status")
def endpoint_state(
    endpoint_id: Annotated[UuidText, Path()], service: Service, caller: Caller, observer: Observer
) -> EndpointStateAnswer:
    """Return an endpoint's state, the time of its last change, and the length of its queue."""
    with service.database.read() as connection:
        endpoint = visible(connection, endpoint_id, caller)
        queue = service.official.queue(connection, endpoint)
    if queue is None:
        name = queues.tasks_queue(endpoint_id)
        queue = observer.queues([name], QUEUE_TIMEOUT).get(name)
    absence = _absence(endpoint)
    return EndpointStateAnswer(
        endpoint_id=endpoint.id,
        name=endpoint.name,
        display_name=endpoint.display_name,
        owner=endpoint.owner,
        status="offline" if absence else "online",
        absence=absence,
        since=endpoint.last_seen if absence else _started(endpoint),
        last_seen=endpoint.last_seen,
        report=shown_report(endpoint, caller),
        queue=queue,
    )


@router.get("/v3/tasks")
def list_tasks(
    query: Annotated[ListTasks, Query()], service: Service, caller: Caller
) -> TasksAnswer:
    """List the caller's tasks, newest first."""
    states = frozenset(query.state or ListedState)
    try:
        after = PagePosition.parse(query.before) if query.before is not None else None
    except ValueError as error:
        raise invalid_field("before", str(error)) from error
    # The database can filter by these two only; `_matching` filters by the exact state.
    ended = True if states <= ENDED_STATES else False if states <= OPEN_STATES else None
    succeeded = ListedState.SUCCESS in states
    failed = None if not ended or (succeeded and len(states) > 1) else not succeeded
    wanted = Wanted(
        caller.id,
        query.endpoint_id,
        query.task_group_id,
        ended,
        failed,
        follows=query.follows,
        jobid=query.jobid,
    )
    with service.database.read() as connection:
        found = _matching(newest_tasks(connection, wanted, after), states)
        return _answer(found, query.limit)


@router.get("/v3/tasks/{task_id}")
def task_record(task_id: TaskId, service: Service, caller: Caller) -> TaskRecord:
    """Return one of the caller's tasks, with its job's events and the end of its error."""
    with service.database.read() as connection:
        record = find_record(connection, caller.id, task_id)
    if record is None:
        raise unknown_task(task_id, service.settings.keep_tasks)
    return record


def _matching(
    tasks: Iterator[tuple[PagePosition, ListedTask]], states: frozenset[ListedState]
) -> Iterator[tuple[PagePosition, ListedTask]]:
    return (each for each in tasks if each[1].state in states)


def _answer(found: Iterator[tuple[PagePosition, ListedTask]], limit: int) -> TasksAnswer:
    listed: list[ListedTask] = []
    last: PagePosition | None = None
    for place, task in found:
        if len(listed) == limit:
            return TasksAnswer(tasks=listed, next=str(last))
        listed.append(task)
        last = place
    return TasksAnswer(tasks=listed)


def _absence(endpoint: Endpoint) -> Absence | None:
    if endpoint.is_online(time.time()):
        return None
    if endpoint.last_report is None:
        return Absence.NEVER
    ends = heartbeat_period(endpoint.last_report) <= 0  # the last report of a multi-user endpoint
    stopped = ends or endpoint.last_report.get("active") is False
    return Absence.STOPPED if stopped else Absence.SILENT


def _started(endpoint: Endpoint) -> float | None:
    started = (endpoint.last_report or {}).get("start_unix")
    return float(started) if isinstance(started, int | float) else None
