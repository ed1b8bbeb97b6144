"""`flux-endpoint attach`: follow a job in an endpoint's Flux instance."""

from __future__ import annotations

import json
import queue
import signal
import time
from collections.abc import Mapping
from typing import Any, NoReturn
from uuid import UUID

import click
from click.shell_completion import CompletionItem

from flux_endpoint import logs
from flux_endpoint.cli.exits import ExitCode
from flux_endpoint.cli.options import complete_endpoint, json_option, put_json, task_or_job
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import shown_age, shown_jobid, shown_moment
from flux_endpoint.cli.targets import EndpointTarget, find_endpoint
from flux_endpoint.cli.task import task_id_of
from flux_endpoint.cli.task_output import follow_output
from flux_endpoint.cli.tasks import find_task, tasks_of_job
from flux_endpoint.client import Client, ComputeFuture, Executor
from flux_endpoint.client.job import JobEvent
from flux_endpoint.errors import FluxEndpointError, NotFoundError
from flux_endpoint.functions import ShellResult
from flux_endpoint.protocol.job_events import IN_ORDER, LAST_EVENT
from flux_endpoint.protocol.jobid import JobID, format_jobid
from flux_endpoint.protocol.operations import ENDED_STATES, EndpointStateAnswer, ListedState

#: Seconds to wait for the job's last events, which arrive separately from its result.
_GRACE = 10.0
#: Flux's text about an unknown job id.
_UNKNOWN = "does not match any job"
#: States of a task that may still become a job.
_BEFORE_JOB = (ListedState.RECEIVED, ListedState.PENDING)


def _complete(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    given = context.params.get("which") or ()
    return [] if given else complete_endpoint(context, parameter, incomplete)


@click.command()
@click.argument("which", nargs=-1, metavar="TASK | [ENDPOINT] JOBID", shell_complete=_complete)
@click.option("-f", "--follow", "follows", is_flag=True, help="A task's output, as it comes.")
@json_option
def attach(*, which: tuple[str, ...], follows: bool, as_json: bool) -> int:
    """Follow a task's job, or any job of an endpoint's instance: its events and output.

    TASK is an id, as listed by `flux-endpoint tasks`. ENDPOINT is a name or an id; it may be left
    out for the job of a task. JOBID has any form that Flux accepts. The job may be any that the
    endpoint may read. The events are printed on standard error; when the job has ended, the last
    lines of its output go to the streams that they were written to. The exit code is the job's, or
    128 plus the signal that ended it. Ctrl-C leaves the job running.

    With --follow, the output of any TASK is printed instead, while it runs. The exit code is then 1
    if a function has failed.
    """
    logs.configure("WARNING")
    try:
        if follows:
            if len(which) != 1:
                raise click.UsageError("name one task to follow its output")
            api = OperatorApi()
            return follow_output(api, task_id_of(which[0], api), as_json=as_json)
        return _attach(which, as_json=as_json)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _attach(which: tuple[str, ...], *, as_json: bool) -> int:
    *before, last = which or ("",)
    if len(which) not in {1, 2}:
        raise click.UsageError("name a task, or an endpoint and a job")
    wanted = task_or_job(last)
    api = OperatorApi()
    if not before and not isinstance(wanted, UUID):
        tasks = tasks_of_job(api, wanted)
        if len(tasks) != 1:
            raise click.UsageError(
                f"at which endpoint is job {last}? flux-endpoint attach ENDPOINT {last}"
            )
        before = [tasks[0].endpoint_id]
    target = find_endpoint(before[0], api) if before else None
    if isinstance(wanted, UUID):
        target, jobid = _job_of(str(wanted), target, api)
    else:
        assert target is not None
        jobid = wanted
    _say_if_offline(target, api.endpoint_state(target.require_id()))
    client = Client(api.credentials.service_url, api.credentials.token)
    executor = Executor(target.endpoint_id, client=client)
    try:
        return _follow(executor.attach(int(jobid)), jobid, target, as_json=as_json)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _job_of(
    task_id: str, target: EndpointTarget | None, api: OperatorApi
) -> tuple[EndpointTarget, JobID]:
    """Return a task's job, and the endpoint that has it.

    Raises:
        NotFoundError: the user has no such task, or it has no job.
    """
    task = find_task(api, task_id)
    if target is not None and target.endpoint_id != task.endpoint_id:
        raise NotFoundError(f"task {task_id} is not one of endpoint {target.name}")
    if task.jobid is None:
        no_job = "no job yet" if task.state in _BEFORE_JOB else "no job: it runs on a worker"
        if task.state in ENDED_STATES:
            no_job = f"no job; it has ended ({task.state.value})"
        raise NotFoundError(f"task {task_id} ({task.function_name or 'unnamed'}) has {no_job}")
    return target or find_endpoint(task.endpoint_id, api), JobID(task.jobid)


def _say_if_offline(target: EndpointTarget, state: EndpointStateAnswer) -> None:
    if state.status == "online":
        return
    since = f" for {shown_age(time.time() - state.since)}" if state.since is not None else ""
    click.echo(
        f"Endpoint {target.name} is offline{since} ({state.absence}); this waits until it is back.",
        err=True,
    )


def _follow(future: ComputeFuture, jobid: JobID, target: EndpointTarget, *, as_json: bool) -> int:
    inbox: queue.SimpleQueue[JobEvent | None] = queue.SimpleQueue()
    for name in IN_ORDER:
        future.add_event_callback(name, lambda _, event: inbox.put(event))
    future.add_done_callback(lambda _: inbox.put(None))
    put = _put_json if as_json else _EventPrinter().put
    last = ""
    while (event := inbox.get()) is not None:
        put(event, jobid)
        last = event.name
    error = future.exception()
    if error is not None:
        _fail(error, jobid, target)
    deadline = time.monotonic() + _GRACE
    while last != LAST_EVENT:
        try:
            event = inbox.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        if event is not None:
            put(event, jobid)
            last = event.name
    return _end(future.result(), jobid, as_json=as_json)


def _fail(error: BaseException, jobid: JobID, target: EndpointTarget) -> NoReturn:
    if _UNKNOWN in str(error):
        raise NotFoundError(
            f"endpoint {target.name} knows no job {shown_jobid(jobid)}: `flux-endpoint tasks` "
            "lists those of tasks, and in a Flux instance `flux jobs -a` lists all"
        ) from error
    if isinstance(error, FluxEndpointError):
        reason = str(error).strip()
        raise FluxEndpointError(
            f"job {shown_jobid(jobid)} can't be followed at endpoint {target.name}: {reason}"
        ) from error
    raise error


class _EventPrinter:
    """Prints events with the seconds since the first one."""

    def __init__(self) -> None:
        self._first: float | None = None

    def put(self, event: JobEvent, jobid: JobID) -> None:
        if self._first is None:
            self._first = event.timestamp
            click.echo(f"{shown_moment(event.timestamp)} job {shown_jobid(jobid)}", err=True)
        after = event.timestamp - self._first
        context = "".join(f" {key}={value}" for key, value in _flat(event.context))
        click.echo(f"{f'+{after:.3f}s':>12} {event.name}{context}", err=True)


def _flat(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return an event's context as pairs of texts; nested keys without their parents."""
    pairs: list[tuple[str, str]] = []
    for key, value in context.items():
        if isinstance(value, Mapping):
            pairs += _flat(value)
        elif isinstance(value, str):
            pairs.append((key, json.dumps(value, ensure_ascii=False) if " " in value else value))
        else:
            pairs.append((key, json.dumps(value)))
    return pairs


def _put_json(event: JobEvent, jobid: JobID) -> None:
    document = {
        "event": event.name,
        "timestamp": event.timestamp,
        "context": event.context,
        "jobid": int(jobid),
        "jobid_f58": format_jobid(jobid),
    }
    put_json(document, indent=None)


def _end(result: ShellResult, jobid: JobID, *, as_json: bool) -> int:
    code = result.returncode if result.returncode >= 0 else 128 - result.returncode
    if as_json:
        document = {
            "end": {
                "exit_code": code,
                "returncode": result.returncode,
                "exception": result.exception_name,
                "stdout": result.stdout,
                "stderr": result.stderr,
            },
            "jobid": int(jobid),
            "jobid_f58": format_jobid(jobid),
        }
        put_json(document, indent=None)
        return code
    click.echo(f"job {shown_jobid(jobid)} {_how(result)}", err=True)
    click.echo(result.stdout, nl=False)
    click.echo(result.stderr, nl=False, err=True)
    return code


def _how(result: ShellResult) -> str:
    if result.returncode >= 0:
        out_of_time = " (its time ran out)" if "Timeout" in (result.exception_name or "") else ""
        return f"ended with exit code {result.returncode}{out_of_time}"
    number = -result.returncode
    try:
        return f"was ended by signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"was ended by signal {number}"
