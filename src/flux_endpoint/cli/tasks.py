"""`flux-endpoint tasks`: submitted tasks and their states."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from flux_endpoint.cli.options import complete_endpoint, json_option, put_json
from flux_endpoint.cli.progress import counted
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import (
    Column,
    Row,
    Tone,
    color_option,
    render,
    shown_age,
    shown_duration,
    shown_jobid,
)
from flux_endpoint.cli.targets import find_endpoint
from flux_endpoint.errors import NotFoundError
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.operations import (
    ENDED_STATES,
    MAX_LISTED,
    OPEN_STATES,
    ListedState,
    ListedTask,
)

#: Values of `--state` besides the states themselves.
_SETS = {"open": OPEN_STATES, "ended": ENDED_STATES}
_TONES: dict[ListedState, Tone] = {
    ListedState.RUNNING: "active",
    ListedState.SUCCESS: "good",
    ListedState.FAILED: "bad",
    ListedState.CANCELLED: "quiet",
}
_COLUMNS = {
    "task": Column("TASK"),
    "function": Column("FUNCTION"),
    "state": Column("STATE"),
    "age": Column("AGE", right=True),
    "runtime": Column("RUNTIME", right=True),
    "returncode": Column("RC", right=True),
    "jobid": Column("JOBID", right=True),
    "endpoint": Column("ENDPOINT"),
    "error": Column("ERROR"),
}
#: The most tasks that are searched for one.
MOST_SEARCHED = 100_000
#: The most characters of a function's name that are shown.
_LONGEST_NAME = 30


@click.command()
@click.argument("endpoint", required=False, shell_complete=complete_endpoint)
@click.option("--group", type=click.UUID, help="Only tasks of this task group.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([*_SETS, *(state.value for state in ListedState)]),
    help="Only tasks in this state; may be repeated.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="The most tasks to list, the newest first.",
)
@click.option("--follows", is_flag=True, help="Include tasks that only follow a job (`attach`).")
@json_option
@color_option
def tasks(
    *,
    endpoint: str | None,
    group: object,
    states: tuple[str, ...],
    limit: int,
    follows: bool,
    as_json: bool,
    color: bool,
) -> None:
    """List tasks, the newest first: function, state, age, runtime, return code, job.

    ENDPOINT is a name or an id; without it, your tasks on all endpoints are shown. Other users'
    tasks are never shown.
    """
    api = OperatorApi()
    target = find_endpoint(endpoint, api) if endpoint is not None else None
    found, more = fetch(
        api,
        endpoint_id=None if target is None else target.require_id(),
        task_group_id=None if group is None else str(group),
        states=chosen(states),
        limit=limit,
        follows=follows,
    )
    if as_json:
        document = {"tasks": [_document(task) for task in found], "more": more}
        put_json(document)
        return
    names = None
    if target is None and found:
        names = {each.uuid: each.name for each in api.endpoints("any")}
    click.echo(_table(found, names, color=color), color=color)
    if more:
        click.echo(f"There are more: --limit {2 * limit} shows the next.", err=True)


def chosen(states: Iterable[str]) -> frozenset[ListedState]:
    """Return the states that `--state` selects."""
    found: set[ListedState] = set()
    for each in states:
        found |= _SETS.get(each) or {ListedState(each)}
    return frozenset(found)


def fetch(
    api: OperatorApi,
    *,
    limit: int,
    until: Callable[[ListedTask], bool] = lambda _: False,
    **which: Any,
) -> tuple[list[ListedTask], bool]:
    """Return the newest tasks, and whether there are more.

    Args:
        api: client of the service.
        limit: the most tasks.
        until: returns whether a task is the last one needed.
        which: the selection, as of `api.tasks`.
    """
    found: list[ListedTask] = []
    before: str | None = None
    pages = range(0, limit, MAX_LISTED)
    with counted(pages, len(pages), "Listing") as bar:
        for start in bar:
            size = min(MAX_LISTED, limit - start)
            answer = api.tasks(limit=size, before=before, **which)
            for task in answer.tasks:
                found.append(task)
                if until(task):
                    return found, True
            before = answer.next
            if before is None:
                break
    return found, before is not None


def find_task(api: OperatorApi, task_id: str) -> ListedTask:
    """Return the user's task with this id.

    Raises:
        NotFoundError: it is not among the newest `MOST_SEARCHED`.
    """
    found, _ = fetch(api, limit=MOST_SEARCHED, until=lambda task: task.task_id == task_id)
    if not found or found[-1].task_id != task_id:
        raise NotFoundError(
            f"none of your {len(found)} newest tasks is {task_id}: `flux-endpoint tasks` lists them"
        )
    return found[-1]


def _document(task: ListedTask) -> dict[str, Any]:
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


def _table(found: list[ListedTask], names: Mapping[str, str] | None, *, color: bool) -> str:
    if not found:
        return "No such tasks of yours."
    columns = dict(_COLUMNS)
    if names is None:
        del columns["endpoint"]
    if not any(task.error for task in found):
        del columns["error"]
    now = time.time()
    rows = [_cells(task, names or {}, now) for task in found]
    cells = [[row[key] for key in columns] for row in rows]
    if "error" in columns:
        _shorten_last(columns, cells)
    tones = (_TONES.get(task.state) for task in found)
    table = [Row(row, tone) for row, tone in zip(cells, tones, strict=True)]
    return render(list(columns.values()), table, color=color)


def _cells(task: ListedTask, names: Mapping[str, str], now: float) -> dict[str, str]:
    name = task.function_name or ("(follows a job)" if task.function_id is None else "-")
    if len(name) > _LONGEST_NAME:
        name = name[: _LONGEST_NAME - 1] + "…"
    return {
        "task": task.task_id,
        "function": name,
        "state": task.state.value,
        "age": shown_age(now - task.submitted),
        "runtime": shown_duration(runtime(task)),
        "returncode": "-" if task.returncode is None else str(task.returncode),
        "jobid": shown_jobid(task.jobid),
        "endpoint": names.get(task.endpoint_id, task.endpoint_id),
        "error": task.error or "",
    }


def _shorten_last(columns: Mapping[str, Column], cells: list[list[str]]) -> None:
    """Shorten the last column so that rows fit the terminal."""
    if not sys.stdout.isatty():
        return
    titles = [column.title for column in columns.values()]
    widths = [max(len(row[i]) for row in [titles, *cells]) for i in range(len(columns) - 1)]
    room = max(shutil.get_terminal_size().columns - sum(widths) - len(widths), 20)
    for row in cells:
        if len(row[-1]) > room:
            row[-1] = row[-1][: room - 1] + "…"
