"""The content of the page, read from database and broker with the rights of its user."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from flux_endpoint import __version__
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.operations import (
    ENDED_STATES,
    MAX_LISTED,
    BrokerDocument,
    DatabaseDocument,
    EndpointStateAnswer,
    ListedState,
    ListedTask,
    ListTasks,
    QueueDocument,
    TaskRecord,
    TasksAnswer,
)
from flux_endpoint.protocol.rest import UuidText
from flux_endpoint.service import topology
from flux_endpoint.service.context import ServiceContext
from flux_endpoint.service.endpoint_states import state_of
from flux_endpoint.service.observer import BrokerObserver
from flux_endpoint.service.page.output import ShownOutput, shown_end, shown_output
from flux_endpoint.service.store import endpoints, listing, numbers, recent
from flux_endpoint.service.store.health import database_health, database_trouble
from flux_endpoint.service.store.tasks import StoredTask
from flux_endpoint.service.store.users import User
from flux_endpoint.service.task_lists import find_tasks

#: Seconds that the broker has to report the lengths of queues.
_QUEUE_TIMEOUT = 1.0
#: Maximum number of endpoints on the page: the user's own first, then those that reported last.
MOST_ENDPOINTS = 100
#: Number of newest tasks whose states are counted.
RECENT = 500
#: Maximum number of tasks in the picture of a run.
MOST_SHOWN = MAX_LISTED
#: Maximum number of groups to choose from.
MOST_GROUPS = 30
MOST_RUNNING = 500
#: Seconds for which a filter searches at a time.
PATIENCE = 1.0


class ShownEndpoint(EndpointStateAnswer):
    """An endpoint on the page. Its report has no names of running tasks, only their number."""

    #: Whether it is the user's own.
    mine: bool


class PageOverview(BaseModel):
    """`GET page/overview`. Times are seconds since the epoch."""

    user: str
    version: str
    time: float
    database: DatabaseDocument | None
    broker: BrokerDocument
    #: The service's own queues.
    queues: dict[str, QueueDocument]
    #: What is wrong with the service, in words for users.
    problems: list[str]
    #: The user's tasks without a result.
    unfinished: int
    #: The states of the user's newest tasks, and how many these are.
    recent: dict[ListedState, int]
    recent_of: int
    endpoints: list[ShownEndpoint]
    #: Number of endpoints that are left out.
    more_endpoints: int


class PageTask(ListedTask):
    """A task on the page. Its `jobid` is left out: JavaScript's numbers are too short for it."""

    #: The id of its job, in Flux's notation.
    job: str | None = None


class PageTasks(BaseModel):
    """`GET page/tasks`: the user's tasks, newest first."""

    tasks: list[PageTask]
    #: `before` for a request of older ones; absent if there are none.
    next: str | None = None


class ShownTask(TaskRecord):
    """`GET page/tasks/{id}`: one task whole, and the end of what it printed or returned."""

    job: str | None = None
    output: ShownOutput


class ListShown(ListTasks):
    """The query parameters of `GET page/tasks`."""

    #: Part of the function's name, in any case.
    function: str = Field(default="", max_length=256)


class WantedActivity(BaseModel):
    """The query parameters of `GET page/activity`."""

    endpoint_id: UuidText | None = None
    task_group_id: UuidText | None = None
    limit: int = Field(default=1000, ge=1, le=MOST_SHOWN)


class ShownRun(BaseModel):
    """A task in the picture of a run."""

    id: str
    function: str | None
    state: ListedState
    submitted: float
    started: float | None
    stopped: float | None
    #: What ran it: its worker or job, and its node, if known.
    lane: str | None = None
    node: str | None = None


class Activity(BaseModel):
    """`GET page/activity`: the newest tasks of an endpoint or group, and when each ran."""

    time: float
    #: Those that run, and the newest that have ended.
    tasks: list[ShownRun]
    #: Whether there are older ones.
    more: bool
    #: The user's tasks without a result, wherever they are.
    unfinished: int


class ShownGroup(BaseModel):
    """A task group that was used lately."""

    id: str
    #: Its latest submission, and the name of a function there.
    submitted: float
    function: str | None
    #: Number of its submissions among the newest.
    submissions: int


class Groups(BaseModel):
    """`GET page/groups`: the task groups of the user's newest submissions."""

    groups: list[ShownGroup]


def overview(service: ServiceContext, user: User, observer: BrokerObserver) -> PageOverview:
    """Return the state of the service, of the user's endpoints, and of the newest tasks."""
    with service.database.read() as connection:
        found, more = _visible(connection, user)
        unfinished = numbers.open_tasks(connection, user.id)
        newest = find_tasks(connection, user.id, ListTasks(limit=RECENT), patience=PATIENCE).tasks
        lengths = {each.id: service.official.queue(connection, each) for each in found}
    database, problems = _database(service)
    broker = observer.broker()
    if not broker.connected:
        problems.append(f"the service can't reach its message broker: {broker.reason}")
    elif broker.alarm:
        problems.append(f"the message broker takes no messages: {broker.alarm}")
    names = {queues.tasks_queue(each.id): each.id for each in found if lengths[each.id] is None}
    counted = observer.queues([*topology.SERVICE_QUEUES, *names], _QUEUE_TIMEOUT)
    lengths |= {names[name]: count for name, count in counted.items() if name in names}
    states = Counter(each.state for each in newest)
    return PageOverview(
        user=user.name,
        version=__version__,
        time=time.time(),
        database=database,
        broker=broker,
        queues={name: count for name, count in counted.items() if name not in names},
        problems=problems,
        unfinished=unfinished,
        recent={state: states[state] for state in ListedState},
        recent_of=len(newest),
        endpoints=[_shown(each, user, lengths[each.id]) for each in found],
        more_endpoints=more,
    )


def _visible(connection: sa.Connection, user: User) -> tuple[list[endpoints.Endpoint], int]:
    listed = endpoints.list_endpoints(connection, user, public=True)
    listed.sort(key=lambda each: (each.owner_id != user.id, -(each.last_seen or 0)))
    found = [endpoints.get_endpoint(connection, each.id) for each in listed[:MOST_ENDPOINTS]]
    more = max(len(listed) - MOST_ENDPOINTS, 0)
    return [each for each in found if each is not None], more


def _database(service: ServiceContext) -> tuple[DatabaseDocument | None, list[str]]:
    try:
        found = database_health(service.database)
    except (SQLAlchemyError, OSError) as error:
        return None, [f"the database can't be used: {database_trouble(error) or 'see the log'}"]
    if found.is_nearly_full:
        return found, ["the database's disk is full, or nearly: no more can be stored soon"]
    return found, []


def _shown(endpoint: endpoints.Endpoint, user: User, queue: QueueDocument | None) -> ShownEndpoint:
    state = state_of(endpoint, user, queue)
    running = state.report.pop(listing.RUNNING, None)
    if isinstance(running, dict):
        state.report["long_running"] = len(running)
    return ShownEndpoint(**vars(state), mine=endpoint.owner_id == user.id)


def _f58(task: ListedTask) -> dict[str, Any]:
    """Return the fields of a task, with its job's id in Flux's notation."""
    job = None if task.jobid is None else format_jobid(task.jobid)
    return {**vars(task), "jobid": None, "job": job}


def _running(
    connection: sa.Connection, user: User, query: ListTasks, function: str = ""
) -> TasksAnswer:
    """Return the running tasks among those of a query; they are few, however many wait."""
    reports = endpoints.recent_reports(connection, user)
    ids = recent.running_ids(connection, user.id, reports)
    return find_tasks(
        connection, user.id, query, function=function, task_ids=ids, patience=PATIENCE
    )


def page_tasks(connection: sa.Connection, user: User, query: ListShown) -> PageTasks:
    """Return a user's tasks, as far as a moment's search finds them."""
    if query.state == [ListedState.RUNNING]:
        found = _running(connection, user, query, query.function)
    else:
        found = find_tasks(connection, user.id, query, function=query.function, patience=PATIENCE)
    return PageTasks(tasks=[PageTask(**_f58(each)) for each in found.tasks], next=found.next)


def shown_task(record: TaskRecord, found: StoredTask) -> ShownTask:
    """Return everything about a task.

    Args:
        record: the task.
        found: the same, with its result.
    """
    output = shown_output(found.result, failed=bool(found.failed))
    if output.command is None:
        ends = {name: shown_end(getattr(record, name)) or None for name in ("stdout", "stderr")}
        output = output.model_copy(update=ends)
    return ShownTask(**_f58(record.model_copy(update={"stdout": "", "stderr": ""})), output=output)


def activity(connection: sa.Connection, user: User, wanted: WantedActivity) -> Activity:
    """Return when the newest tasks of an endpoint or a group ran."""
    these = ListTasks(endpoint_id=wanted.endpoint_id, task_group_id=wanted.task_group_id)
    # Not those that wait: they may be any number, and newer than all that ran.
    running = {"state": [ListedState.RUNNING], "limit": MOST_RUNNING}
    ended = {"state": list(ENDED_STATES), "limit": wanted.limit}
    begun = _running(connection, user, these.model_copy(update=running))
    over = find_tasks(connection, user.id, these.model_copy(update=ended), patience=PATIENCE)
    return Activity(
        time=time.time(),
        tasks=[
            ShownRun(
                id=each.task_id,
                function=each.function_name,
                state=each.state,
                submitted=each.submitted,
                started=each.started,
                stopped=each.stopped or each.ended,
                lane=_lane(each),
                node=each.node,
            )
            for each in (*begun.tasks, *over.tasks)
        ],
        more=over.next is not None,
        unfinished=numbers.open_tasks(connection, user.id),
    )


def _lane(task: ListedTask) -> str | None:
    if task.worker is not None:
        return str(task.worker)
    return None if task.jobid is None else format_jobid(task.jobid)


def recent_groups(connection: sa.Connection, user: User) -> Groups:
    """Return the task groups of a user's newest submissions, the latest first."""
    found: dict[str, ShownGroup] = {}
    for group_id, submitted, function in recent.newest_groups(connection, user.id):
        known = found.setdefault(
            group_id, ShownGroup(id=group_id, submitted=submitted, function=None, submissions=0)
        )
        known.submissions += 1
        known.function = known.function or function
    return Groups(groups=list(found.values())[:MOST_GROUPS])
