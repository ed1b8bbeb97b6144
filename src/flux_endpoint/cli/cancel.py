"""`flux-endpoint cancel`: end tasks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from uuid import UUID

import click
from click.shell_completion import CompletionItem

from flux_endpoint.cli.exits import ExitCode, exit_code_of
from flux_endpoint.cli.group import find_group
from flux_endpoint.cli.options import complete_endpoint, json_option, put_json, task_or_job
from flux_endpoint.cli.progress import counted
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import Column, Row, Tone, color_option, render, shown_jobid
from flux_endpoint.cli.targets import find_endpoint
from flux_endpoint.cli.tasks import fetch, tasks_of_job
from flux_endpoint.errors import FluxEndpointError, ServiceUnreachableError
from flux_endpoint.protocol.jobid import JobID
from flux_endpoint.protocol.operations import MAX_LISTED, OPEN_STATES
from flux_endpoint.protocol.states import FINAL_STATES

#: The most concurrent requests.
_AT_A_TIME = 8
#: The most open tasks of a group that are searched for.
_MAX_TASKS = 1_000_000
_TONES: dict[str, Tone] = {
    "ending": "active",
    "sent": "active",
    "cancelled": "quiet",
    "failed": "bad",
}
_COLUMNS = [Column("TASK"), Column("OUTCOME"), Column("")]


@dataclass(frozen=True)
class TaskOutcome:
    """The result of a request about a task.

    Attributes:
        task_id: the task's id; the job's id if it has no task.
        outcome: "ending" (its endpoint was notified), "cancelled" (it has ended), "sent" (an
            urgency, to its endpoint), "ended before" or "failed".
        status: the task's present state at the service.
        error: why the request failed.
    """

    task_id: str
    outcome: str
    status: str | None = None
    error: str | None = None


def complete_task(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the newest open tasks whose ids begin with `incomplete`."""
    found, _ = fetch(OperatorApi(), states=OPEN_STATES, limit=MAX_LISTED)
    return [
        CompletionItem(each.task_id, help=each.function_name)
        for each in found
        if each.task_id.startswith(incomplete)
    ]


def given_tasks(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[UUID | JobID, ...]:
    """Return the tasks and jobs that were named; a callback of click."""
    return tuple(task_or_job(value) for value in values)


def found_tasks(
    api: OperatorApi, wanted: tuple[UUID | JobID, ...]
) -> tuple[list[str], list[TaskOutcome]]:
    """Return task ids, with jobs replaced by their tasks, and outcomes for jobs without a task."""
    ids = [str(each) for each in wanted if isinstance(each, UUID)]
    jobs = [each for each in wanted if isinstance(each, JobID)]
    if not jobs:
        return ids, []
    failures = []
    for job in jobs:
        shown = shown_jobid(job)
        found = [task.task_id for task in tasks_of_job(api, job, OPEN_STATES)]
        if len(found) == 1:
            ids += found
        elif found:  # jobs of several endpoints have that id
            several = f"{len(found)} tasks have a job of that id, name one: {', '.join(found)}"
            failures.append(TaskOutcome(shown, "failed", error=several))
        else:
            none = (
                "none of your open tasks has that job; in a Flux instance, `flux cancel` ends "
                "any other"
            )
            failures.append(TaskOutcome(shown, "failed", error=none))
    return ids, failures


@click.command()
@click.argument(
    "tasks", nargs=-1, metavar="TASK...", callback=given_tasks, shell_complete=complete_task
)
@click.option("--group", type=click.UUID, help="Also all open tasks of this task group.")
@click.option(
    "--endpoint",
    metavar="ENDPOINT",
    shell_complete=complete_endpoint,
    help="Also all of your open tasks at this endpoint: its name or its id.",
)
@json_option
@color_option
def cancel(
    *,
    tasks: tuple[UUID | JobID, ...],
    group: UUID | None,
    endpoint: str | None,
    as_json: bool,
    color: bool,
) -> int:
    """End tasks and all of their processes.

    TASK is the id of a task, as listed by `flux-endpoint tasks`, or of its job. A task that has
    ended stays as it is. If one task can't be ended, the others still are.
    """
    if not tasks and group is None and endpoint is None:
        raise click.UsageError(
            "name a task, a task group with --group, or an endpoint with --endpoint"
        )
    api = OperatorApi()
    ids, failures = found_tasks(api, tasks)
    if group is not None:
        found, _ = fetch(api, task_group_id=str(group), states=OPEN_STATES, limit=_MAX_TASKS)
        if not found:
            find_group(api, str(group))
        ids += [each.task_id for each in found]
    if endpoint is not None:
        at = find_endpoint(endpoint, api).require_id()
        found, _ = fetch(api, endpoint_id=at, states=OPEN_STATES, limit=_MAX_TASKS)
        ids += [each.task_id for each in found]
    ids = list(dict.fromkeys(ids))
    code, outcomes = _end(api, ids)
    if failures:
        code, outcomes = code or ExitCode.NOT_FOUND, outcomes + failures
    if outcomes or as_json:
        put_outcomes(outcomes, as_json=as_json, color=color)
    else:
        click.echo("No open tasks.")
    return code


def put_outcomes(outcomes: list[TaskOutcome], *, as_json: bool, color: bool) -> None:
    """Print outcomes as a table or as JSON."""
    if as_json:
        put_json({"tasks": [asdict(each) for each in outcomes]})
        return
    rows = [
        Row([each.task_id, each.outcome, each.error or ""], _TONES.get(each.outcome))
        for each in outcomes
    ]
    click.echo(render(_COLUMNS, rows, color=color), color=color)


def _end(api: OperatorApi, ids: list[str]) -> tuple[ExitCode, list[TaskOutcome]]:
    code = ExitCode.OK
    outcomes: list[TaskOutcome] = []
    ender = _Ender(api)
    threads = ThreadPoolExecutor(_AT_A_TIME)
    try:
        with counted(threads.map(ender.end, ids), len(ids), "Cancelling") as bar:
            for outcome, failure in bar:
                outcomes.append(outcome)
                code = code or failure
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
    return code, outcomes


class _Ender:
    """Ends tasks; stops at an unreachable service, since the others would fail, too."""

    def __init__(self, api: OperatorApi) -> None:
        self._api = api
        self._unreachable: ServiceUnreachableError | None = None

    def end(self, task_id: str) -> tuple[TaskOutcome, ExitCode]:
        try:
            if self._unreachable is not None:
                raise self._unreachable
            answer = self._api.kill(task_id)
        except FluxEndpointError as error:
            if isinstance(error, ServiceUnreachableError):
                self._unreachable = error
            return TaskOutcome(task_id, "failed", error=str(error)), exit_code_of(error)
        if not answer.delivered:
            outcome = "ended before"
        else:
            outcome = "cancelled" if answer.status in FINAL_STATES else "ending"
        return TaskOutcome(task_id, outcome, answer.status), ExitCode.OK
