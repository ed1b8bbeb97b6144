"""Routes for monitoring: the state of the service, the state of an endpoint, lists of tasks."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from flux_endpoint import __version__
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.operations import (
    EndpointStateAnswer,
    GroupReport,
    ListTasks,
    ServiceStatusAnswer,
    TaskRecord,
    TasksAnswer,
)
from flux_endpoint.protocol.rest import UuidText
from flux_endpoint.service import topology
from flux_endpoint.service.context import Service
from flux_endpoint.service.endpoint_states import state_of
from flux_endpoint.service.fresh_reports import FreshReports
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.observer import BrokerObserver
from flux_endpoint.service.page.output import shown_output
from flux_endpoint.service.routes.endpoints import visible
from flux_endpoint.service.routes.tasks import GroupId, TaskId, unknown_group, unknown_task
from flux_endpoint.service.store import task_groups
from flux_endpoint.service.store.group_report import group_report as find_report
from flux_endpoint.service.store.health import database_health
from flux_endpoint.service.store.listing import task_record as find_record
from flux_endpoint.service.store.tasks import stored_result
from flux_endpoint.service.task_lists import find_tasks

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


async def _fresh_reports(request: Request) -> FreshReports:
    reports = request.app.state.fresh_reports
    assert isinstance(reports, FreshReports)
    return reports


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
    *,
    endpoint_id: Annotated[UuidText, Path()],
    service: Service,
    caller: Caller,
    observer: Observer,
    reports: Annotated[FreshReports, Depends(_fresh_reports)],
    fresh: Annotated[bool, Query()] = False,
) -> EndpointStateAnswer:
    """Return an endpoint's state, the time of its last change, and the length of its queue.

    With `fresh`, an endpoint whose last report is older than three seconds is asked for another,
    and the answer waits up to two seconds for it.
    """
    with service.database.read() as connection:
        endpoint = visible(connection, endpoint_id, caller)
    if fresh and reports.refresh(service, endpoint, caller):
        with service.database.read() as connection:
            endpoint = visible(connection, endpoint_id, caller)
    with service.database.read() as connection:
        queue = service.official.queue(connection, endpoint)
    if queue is None:
        name = queues.tasks_queue(endpoint_id)
        queue = observer.queues([name], QUEUE_TIMEOUT).get(name)
    return state_of(endpoint, caller, queue)


@router.get("/v3/tasks")
def list_tasks(
    query: Annotated[ListTasks, Query()], service: Service, caller: Caller
) -> TasksAnswer:
    """List the caller's tasks, newest first."""
    with service.database.read() as connection:
        return find_tasks(connection, caller.id, query)


@router.get("/v3/taskgroups/{group_id}")
def report_group(group_id: GroupId, service: Service, caller: Caller) -> GroupReport:
    """Return how far a task group is: tasks by state, failures by kind, expected end."""
    with service.database.read() as connection:
        if task_groups.group_owner(connection, group_id) != caller.id:
            raise unknown_group(group_id)
        return find_report(connection, group_id)


@router.get("/v3/tasks/{task_id}")
def task_record(task_id: TaskId, service: Service, caller: Caller) -> TaskRecord:
    """Return one of the caller's tasks: its job's events, the ends of its output and its error."""
    with service.database.read() as connection:
        record = find_record(connection, caller.id, task_id)
        if record is None:
            raise unknown_task(task_id, service.settings.keep_tasks)
        if record.returncode is None:
            return record
        result = stored_result(connection, task_id)
    shown = shown_output(result, failed=record.error is not None)
    return record.model_copy(update={"stdout": shown.stdout or "", "stderr": shown.stderr or ""})
