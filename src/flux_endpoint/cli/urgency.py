"""`flux-endpoint urgency`: hold and release tasks, and change their order."""

from __future__ import annotations

from uuid import UUID

import click

from flux_endpoint.cli.cancel import (
    TaskOutcome,
    complete_task,
    found_tasks,
    given_tasks,
    put_outcomes,
)
from flux_endpoint.cli.exits import ExitCode, exit_code_of
from flux_endpoint.cli.options import json_option
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import color_option
from flux_endpoint.errors import FluxEndpointError, ServiceUnreachableError
from flux_endpoint.protocol.jobid import JobID
from flux_endpoint.protocol.resources import HELD, MAX_URGENCY

#: The words of `flux job urgency`.
_WORDS = {"hold": HELD, "expedite": MAX_URGENCY, "default": None}


def _urgency(_context: click.Context, _parameter: click.Parameter, value: str) -> int | None:
    if value in _WORDS:
        return _WORDS[value]
    if value.isdecimal() and len(value) < 9 and int(value) <= MAX_URGENCY:
        return int(value)
    words = ", ".join(_WORDS)
    raise click.BadParameter(f"{value!r} is no number from 0 to {MAX_URGENCY}, nor one of {words}")


@click.command()
@click.argument(
    "tasks",
    nargs=-1,
    required=True,
    metavar="TASK...",
    callback=given_tasks,
    shell_complete=complete_task,
)
@click.argument("urgency", metavar="URGENCY", callback=_urgency)
@json_option
@color_option
def urgency(
    *, tasks: tuple[UUID | JobID, ...], urgency: int | None, as_json: bool, color: bool
) -> int:
    """Hold or release tasks, or change their order.

    TASK is the id of a task that has not begun, or of its job. As in `flux job urgency`, URGENCY is
    a number from 0 to 31, `hold` (0), `expedite` (31), or `default`: what the task was submitted
    with, which releases one that is held.
    """
    api = OperatorApi()
    ids, failures = found_tasks(api, tasks)
    code = ExitCode.NOT_FOUND if failures else ExitCode.OK
    outcomes = list(failures)
    for task_id in dict.fromkeys(ids):
        try:
            answer = api.set_urgency(task_id, urgency)
        except ServiceUnreachableError:
            raise
        except FluxEndpointError as error:
            outcomes.append(TaskOutcome(task_id, "failed", error=str(error)))
            code = code or exit_code_of(error)
        else:
            outcome = "sent" if answer.delivered else "ended before"
            outcomes.append(TaskOutcome(task_id, outcome, answer.status))
    put_outcomes(outcomes, as_json=as_json, color=color)
    return code
