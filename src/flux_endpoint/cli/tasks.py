"""`flux-endpoint tasks`: submitted tasks and their states."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import click

from flux_endpoint.cli.options import complete_endpoint, put_json
from flux_endpoint.cli.progress import counted
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import (
    Column,
    Row,
    Tone,
    View,
    shortened,
    shown_age,
    shown_bytes,
    shown_duration,
    shown_jobid,
    view_options,
)
from flux_endpoint.cli.targets import find_endpoint
from flux_endpoint.errors import NotFoundError, ServiceError
from flux_endpoint.protocol.administration import UserTask
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.operations import (
    ENDED_STATES,
    MAX_LISTED,
    OPEN_STATES,
    ListedState,
    ListedTask,
    TaskRecord,
)

#: Values of `--state` besides the states themselves.
_SETS = {"open": OPEN_STATES, "ended": ENDED_STATES}
#: The colour of each state.
TONES: dict[ListedState, Tone] = {
    ListedState.RUNNING: "active",
    ListedState.SUCCESS: "good",
    ListedState.FAILED: "bad",
    ListedState.CANCELLED: "quiet",
}
#: The columns of a table of tasks.
COLUMNS = {
    "task": Column("TASK"),
    "user": Column("USER", least=6),
    "function": Column("FUNCTION", least=8),
    "state": Column("STATE"),
    "age": Column("AGE", right=True, goes=1),
    "queued": Column("QUEUED", right=True, goes=3),
    "runtime": Column("RUNTIME", right=True, goes=1),
    "rc": Column("RC", right=True, goes=2),
    "jobid": Column("JOBID", right=True, goes=3),
    "node": Column("NODE", least=8, goes=5),
    "worker": Column("WORKER", right=True, goes=5),
    "attempts": Column("ATTEMPTS", right=True, goes=5),
    "cpu": Column("CPU", right=True, goes=5),
    "memory": Column("MEMORY", right=True, goes=5),
    "endpoint": Column("ENDPOINT", least=8, goes=6),
    "group": Column("GROUP", goes=7),
    "error": Column("ERROR", least=12, goes=4),
}
#: The columns that are shown unless others are chosen.
DEFAULT_COLUMNS = (
    "task",
    "user",
    "function",
    "state",
    "age",
    "runtime",
    "rc",
    "jobid",
    "endpoint",
    "error",
)
#: The most characters of a function's name that are shown.
_LONGEST_NAME = 30


state_option = click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([*_SETS, *(state.value for state in ListedState)]),
    help="Only tasks in this state; may be repeated.",
)


@click.command()
@click.argument("endpoint", required=False, shell_complete=complete_endpoint)
@click.option("--group", type=click.UUID, help="Only tasks of this task group.")
@state_option
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="The most tasks to list, the newest first.",
)
@click.option("--follows", is_flag=True, help="Include tasks that only follow a job (`attach`).")
@click.option(
    "--all-users", is_flag=True, help="The tasks of all users; needs an administrator's token."
)
@click.option(
    "--user", metavar="NAME", help="The tasks of this user; needs an administrator's token."
)
@view_options(COLUMNS)
def tasks(
    *,
    endpoint: str | None,
    group: object,
    states: tuple[str, ...],
    limit: int,
    follows: bool,
    all_users: bool,
    user: str | None,
    view: View,
) -> None:
    """List tasks, the newest first: function, state, age, runtime, return code, job.

    ENDPOINT is a name or an id; without it, your tasks on all endpoints are shown. Other users'
    tasks are shown to administrators only.
    """
    api = OperatorApi()
    target = find_endpoint(endpoint, api) if endpoint is not None else None
    search = partial(
        fetch,
        api,
        endpoint_id=None if target is None else target.require_id(),
        task_group_id=None if group is None else str(group),
        states=states_of(states),
        limit=limit,
        follows=follows,
        all_users=all_users,
        user=user,
    )
    found, more = search()
    if api.refresh(task.endpoint_id for task in found if task.state in OPEN_STATES):
        found, more = search()
    of_others = all_users or user is not None
    if view.as_json:
        put_json({"tasks": [document(task) for task in found], "more": more})
        return
    shown = view.chosen or [
        name
        for name in DEFAULT_COLUMNS
        if (name != "user" or of_others)
        and (name != "endpoint" or target is None)
        and (name != "error" or any(task.error for task in found))
    ]
    names = {}
    if "endpoint" in shown and found:
        names = _endpoint_names(api, of_others=of_others)
    if found:
        put_tasks(view, found, names, shown)
    else:
        click.echo("No such tasks." if "user" in shown else "No such tasks of yours.")
    if more:
        click.echo(f"There are more: --limit {2 * limit} shows the next.", err=True)


def _endpoint_names(api: OperatorApi, *, of_others: bool) -> dict[str, str]:
    if of_others:
        return {each.endpoint_id: each.name for each in api.all_endpoints()}
    return {each.uuid: each.name for each in api.endpoints("any")}


def states_of(states: Iterable[str]) -> frozenset[ListedState]:
    """Return the states that `--state` selects."""
    found: set[ListedState] = set()
    for each in states:
        found |= _SETS.get(each) or {ListedState(each)}
    return frozenset(found)


def fetch(
    api: OperatorApi,
    *,
    limit: int,
    **which: Any,
) -> tuple[list[ListedTask], bool]:
    """Return the newest tasks, and whether there are more.

    Args:
        api: client of the service.
        limit: the most tasks.
        which: the selection, as of `api.tasks`.
    """
    found: list[ListedTask] = []
    before: str | None = None
    pages = range(0, limit, MAX_LISTED)
    with counted(pages, len(pages), "Listing") as bar:
        for start in bar:
            size = min(MAX_LISTED, limit - start)
            answer = api.tasks(limit=size, before=before, **which)
            found += answer.tasks
            before = answer.next
            if before is None:
                break
    return found, before is not None


def find_task(api: OperatorApi, task_id: str) -> TaskRecord:
    """Return the user's task with this id.

    Raises:
        NotFoundError: there is none.
    """
    try:
        return api.task(task_id)
    except ServiceError as error:
        if error.code in {"TASK_NOT_FOUND", "TASK_EXPIRED"}:
            raise NotFoundError(f"{error}: `flux-endpoint tasks` lists yours") from error
        raise


def tasks_of_job(
    api: OperatorApi, jobid: int, states: frozenset[ListedState] = frozenset()
) -> list[ListedTask]:
    """Return the user's tasks that have the job with this id; several Flux instances may have it.

    Args:
        api: client of the service.
        jobid: the job.
        states: only tasks in one of these states; default: all.
    """
    found = api.tasks(jobid=jobid, states=states, limit=MAX_LISTED, follows=False).tasks
    return [task for task in found if task.jobid == jobid]


def document(task: ListedTask) -> dict[str, Any]:
    """Return a task for JSON output."""
    shown = None if task.jobid is None else format_jobid(task.jobid)
    return {**task.model_dump(mode="json"), "runtime": runtime(task), "jobid_f58": shown}


def runtime(task: ListedTask) -> float | None:
    """Return for how many seconds a task ran, or has been running."""
    if task.started is None:
        return None
    end = task.stopped
    if end is None:
        if task.ended is not None:
            return None
        end = time.time()
    return round(max(0.0, end - task.started), 3)


def put_tasks(
    view: View, found: Sequence[ListedTask], names: Mapping[str, str], shown: Sequence[str]
) -> None:
    """Print a table of tasks.

    Args:
        view: how.
        found: the tasks.
        names: names of endpoints by id.
        shown: the columns.
    """
    now = time.time()
    rows = []
    for task in found:
        cells = cells_of(task, names, now)
        if not view.wide:
            cells["function"] = shortened(cells["function"], _LONGEST_NAME)
        rows.append(Row([cells[name] for name in shown], TONES.get(task.state)))
    view.put({name: COLUMNS[name] for name in shown}, rows)


def cells_of(task: ListedTask, names: Mapping[str, str], now: float) -> dict[str, str]:
    """Return the cells of a task's row, by column.

    Args:
        task: the task.
        names: names of endpoints by id.
        now: seconds since the epoch.
    """
    return {
        "task": task.task_id,
        "user": task.user if isinstance(task, UserTask) else "-",
        "function": called(task),
        "state": task.state.value,
        "age": shown_age(now - task.submitted),
        "queued": shown_duration(task.queue_time),
        "runtime": shown_duration(runtime(task)),
        "rc": _number(task.returncode),
        "jobid": shown_jobid(task.jobid),
        "node": task.node or "-",
        "worker": _number(task.worker),
        "attempts": _number(task.attempts),
        "cpu": shown_duration(task.cpu_time),
        "memory": "-" if task.max_rss is None else shown_bytes(task.max_rss),
        "endpoint": names.get(task.endpoint_id, task.endpoint_id),
        "group": task.task_group_id,
        "error": task.error or "",
    }


def called(task: ListedTask) -> str:
    """Return the name of a task's function for people."""
    return task.function_name or ("(follows a job)" if task.function_id is None else "-")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
