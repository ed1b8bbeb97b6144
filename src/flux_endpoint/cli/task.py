"""`flux-endpoint task`: one task whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import click

from flux_endpoint.cli.cancel import complete_task
from flux_endpoint.cli.options import json_option, put_json, task_or_job
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import (
    Tone,
    color_option,
    printable,
    shortened,
    shown_age,
    shown_bytes,
    shown_duration,
    shown_jobid,
    shown_moment,
    terminal_width,
    toned,
    wrapped,
)
from flux_endpoint.cli.tasks import (
    TONES,
    called,
    document,
    find_task,
    runtime,
    tasks_of_job,
)
from flux_endpoint.errors import NotFoundError
from flux_endpoint.protocol.job_events import ATTEMPT_FAILED
from flux_endpoint.protocol.jobid import JobID
from flux_endpoint.protocol.operations import ENDED_STATES, TaskRecord

#: A line of the screen: its title, its text, and its colour.
Line = tuple[str, str, Tone | None]

_TITLE_WIDTH = 10
#: The most lines of an error, or of an output stream, that are shown: those at its end.
_SHOWN_LINES = 30
#: The most characters of an event's context.
_LONGEST_CONTEXT = 200
#: The most tasks of a job that an error names.
_MOST_NAMED = 20


@click.command()
@click.argument("task", metavar="TASK", shell_complete=complete_task)
@json_option
@color_option
def task(*, task: str, as_json: bool, color: bool) -> None:
    """Show one task: its timeline with Flux's events, worker, resources, output, error.

    TASK is the id of a task, as listed by `flux-endpoint tasks`, or of its job (ƒ2WXGLe).
    """
    api = OperatorApi()
    record = find_task(api, task_id_of(task, api))
    if as_json:
        put_json(document(record))
        return
    show_record(record, color=color)


def show_record(record: TaskRecord, *, color: bool) -> None:
    """Print a task whole.

    Args:
        record: the task.
        color: whether to use colours.
    """
    width = terminal_width()
    for title, text, tone in _lines(record):
        for place, part in enumerate(wrapped(text, width, _TITLE_WIDTH + 1)):
            shown = toned(printable(part), tone if color else None)
            line = f"{'' if place else title:<{_TITLE_WIDTH}} {shown}"
            click.echo(line.rstrip(), color=color)
    click.echo()
    for line in map(printable, _timeline(record)):
        click.echo(line if width is None else shortened(line, width))
    for title, text in (("Standard output", record.stdout), ("Standard error", record.stderr)):
        if text:
            click.echo(f"\n{title}:")
            for line in _end_of(text):
                click.echo(line)
    if record.error_text:
        click.echo()
        for line in _end_of(record.error_text):
            click.echo(printable(line.expandtabs()))  # it may be another user's


def task_id_of(text: str, api: OperatorApi) -> str:
    """Return the id of the task that `text` names by its id or its job's.

    Raises:
        click.BadParameter: it is neither.
        click.UsageError: several tasks have that job.
        NotFoundError: no task of the user has that job.
    """
    wanted = task_or_job(text)
    if isinstance(wanted, UUID):
        return str(wanted)
    return _task_of_job(wanted, api)


def _task_of_job(jobid: JobID, api: OperatorApi) -> str:
    found = [each.task_id for each in tasks_of_job(api, jobid)]
    shown = shown_jobid(jobid)
    if len(found) > 1:
        ids = ", ".join(found[:_MOST_NAMED])
        raise click.UsageError(f"{len(found)} of your tasks have a job {shown}, name one: {ids}")
    if not found:
        raise NotFoundError(
            f"none of your tasks has the job {shown}: `flux-endpoint tasks` lists them"
        )
    return found[0]


def _lines(record: TaskRecord) -> Iterator[Line]:
    yield "Task", record.task_id, None
    function = called(record)
    if record.function_id is not None:
        function += f" ({record.function_id})"
    yield "Function", function, None
    yield "State", _state(record), TONES.get(record.state)
    endpoint = record.endpoint_id
    if record.endpoint_name:
        endpoint = f"{record.endpoint_name} ({endpoint})"
    yield "Endpoint", endpoint, None
    yield "Group", record.task_group_id, None
    if record.resource_specification:
        yield "Resources", _context(record.resource_specification), None
    if record.run_options:
        yield "Options", _context(record.run_options), None
    if record.jobid is not None:
        yield "Job", shown_jobid(record.jobid), None
    if record.node is not None:
        worker = "" if record.worker is None else f", worker {record.worker}"
        yield "Ran on", record.node + worker, None
    if (record.attempts or 1) > 1:
        yield "Attempts", str(record.attempts), None
    for number, reason in enumerate(record.failed_attempts, start=1):
        yield "" if number > 1 else "Failed", f"attempt {number}: {reason}", "bad"
    yield "Time", _times(record), None
    if used := _used(record):
        yield "Used", used, None
    if record.returncode is not None:
        yield "Exit code", _exit(record.returncode), "bad" if record.returncode else None
    python = record.details.get("python_version")
    if python:
        yield "Python", f"{python} on {record.details.get('os', 'an unknown system')}", None


def _state(record: TaskRecord) -> str:
    if record.state in ENDED_STATES and record.ended is not None:
        return f"{record.state.value}, {shown_age(time.time() - record.ended)} ago"
    return f"{record.state.value}, submitted {shown_age(time.time() - record.submitted)} ago"


def _times(record: TaskRecord) -> str:
    if record.queue_time is None:
        if record.state in ENDED_STATES:
            return "it never started"
        return f"has waited for {shown_duration(time.time() - record.submitted)}"
    waited = f"waited {shown_duration(record.queue_time)}"
    ran = runtime(record)
    if ran is None:
        return f"{waited}, then started"
    if record.stopped is None and record.state not in ENDED_STATES:
        return f"{waited}, has been running for {shown_duration(ran)}"
    return f"{waited}, ran {shown_duration(ran)}"


def _used(record: TaskRecord) -> str:
    parts = []
    if record.cpu_time is not None:
        parts.append(f"{shown_duration(record.cpu_time)} of CPU time")
    if record.max_rss is not None:
        parts.append(f"{shown_bytes(record.max_rss)} of memory at its peak")
    return ", ".join(parts)


def _exit(returncode: int) -> str:
    return str(returncode) if returncode >= 0 else f"{returncode} (signal {-returncode})"


def _timeline(record: TaskRecord) -> Iterator[str]:
    """Yield a line for each thing that happened, in the order of the clocks that report them."""
    moments = [
        (record.submitted, "submitted", ""),
        (record.published, "sent to its endpoint", ""),
        (record.ended, "result arrived", ""),
        *((e.timestamp, _of_kind(e.name), _of_event(e.context)) for e in record.events),
    ]
    if not any(event.name == "start" for event in record.events):
        moments += [(record.started, "started", ""), (record.stopped, "stopped", "")]
    known = sorted((m for m in moments if m[0] is not None), key=lambda moment: moment[0] or 0)
    for at, what, more in known:
        assert at is not None
        yield f"{_clock(at)} {at - record.submitted:+9.3f}s {what} {more}".rstrip()


def _of_kind(name: str) -> str:
    return "attempt failed:" if name == ATTEMPT_FAILED else f"job: {name}"


def _clock(at: float) -> str:
    return f"{shown_moment(at)}.{int(at % 1 * 1000):03d}"


def _of_event(context: Mapping[str, Any]) -> str:
    """Return an event's context; of an allocation, the resources alone."""
    try:
        return str(context["annotations"]["sched"]["resource_summary"])
    except (LookupError, TypeError):
        return _context(context)


def _context(context: Mapping[str, Any]) -> str:
    """Return a context as Flux prints it: `key=value`, values in JSON unless they are words."""
    parts = (
        f"{key}={value if isinstance(value, str) and value.isprintable() else json.dumps(value)}"
        for key, value in context.items()
    )
    text = " ".join(parts)
    return text if len(text) <= _LONGEST_CONTEXT else text[: _LONGEST_CONTEXT - 1] + "…"


def _end_of(text: str) -> Iterator[str]:
    lines = text.rstrip().splitlines()
    if len(lines) > _SHOWN_LINES:
        yield f"[... {len(lines) - _SHOWN_LINES} lines, in --json ...]"
    yield from lines[-_SHOWN_LINES:]
