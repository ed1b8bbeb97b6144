"""`flux-endpoint status`: the state of everything, on one screen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from flux_endpoint.cli.exits import ExitCode, exit_code_of
from flux_endpoint.cli.options import complete_endpoint, put_json
from flux_endpoint.cli.overview import EndpointView, Overview, ServiceView, collect
from flux_endpoint.cli.table import (
    Column,
    Row,
    Tone,
    View,
    shown_age,
    shown_bytes,
    shown_duration,
    shown_jobid,
    shown_moment,
    table_of,
    toned,
    view_options,
    wrapped,
)
from flux_endpoint.protocol.operations import Absence, DatabaseDocument, ServiceStatusAnswer
from flux_endpoint.stack.state import start_command

#: A line of the screen: its title, its text, and its colour.
Line = tuple[str, str, Tone | None]

_COLUMNS = {
    "name": Column("NAME", least=8),
    "id": Column("ID", goes=9),
    "status": Column("STATUS"),
    "since": Column("SINCE", right=True, goes=7),
    "report": Column("REPORT", right=True, goes=1),
    "executor": Column("EXECUTOR", goes=8),
    "workers": Column("WORKERS", right=True, goes=2),
    "busy": Column("BUSY", right=True, goes=3),
    "jobs": Column("JOBS", right=True, goes=4),
    "queue": Column("QUEUE", right=True, goes=1),
    "taken": Column("TAKEN", right=True, goes=5),
    "rate": Column("TASKS/S", right=True, goes=6),
}
_TONES: dict[str, Tone] = {"online": "good", "offline": "bad"}
_TITLE_WIDTH = 10


@click.command()
@click.argument("endpoint", required=False, shell_complete=complete_endpoint)
@view_options(_COLUMNS)
def status(*, endpoint: str | None, view: View) -> int:
    """Show the service, its broker and the endpoints: what runs, what waits, how fast.

    ENDPOINT is a name or an id; without it, all endpoints that you may use are shown. An endpoint's
    numbers come from its last status report, whose age is shown next to them.
    """
    overview = collect(endpoint)
    if view.as_json:
        put_json(overview.document())
    else:
        for line in screen(overview, color=view.color, width=view.width, chosen=view.chosen):
            click.echo(line, color=view.color)
    return _exit_code(overview, named=endpoint is not None)


def _exit_code(overview: Overview, *, named: bool) -> int:
    service = overview.service
    if service.error is not None:
        return exit_code_of(service.error)
    if service.answer is not None and not service.answer.broker.usable:
        return ExitCode.UNAVAILABLE
    if named and any(each.status != "online" for each in overview.endpoints):
        return ExitCode.FAILED
    return ExitCode.OK


def screen(
    overview: Overview,
    *,
    color: bool,
    width: int | None = None,
    chosen: Sequence[str] | None = None,
) -> Iterator[str]:
    """Yield the lines of the screen.

    Args:
        overview: what it shows.
        color: whether to use colours.
        width: the most characters of a line; `None`: any.
        chosen: the columns of a table; with them there is one for a single endpoint, too.
    """
    yield from _shown(_service_lines(overview.service), color=color, width=width)
    yield ""
    views = overview.endpoints
    if not views:
        yield "No endpoints yet. Create one with: flux-endpoint configure NAME"
    elif len(views) == 1 and chosen is None:
        yield from _shown(_endpoint_lines(views[0]), color=color, width=width)
    else:
        yield table_of(_COLUMNS, [_row(view) for view in views], chosen, color=color, width=width)
        for local in (view.target.local for view in views):
            if local is not None and local.pid is None and local.reason:
                yield f"{local.name}: {local.reason}"


def _shown(lines: Iterator[Line], *, color: bool, width: int | None) -> Iterator[str]:
    for title, text, tone in lines:
        for place, part in enumerate(wrapped(text, width, _TITLE_WIDTH + 1)):
            shown = toned(part, tone if color else None)
            yield f"{'' if place else title:<{_TITLE_WIDTH}} {shown}"


def _service_lines(view: ServiceView) -> Iterator[Line]:
    if view.answer is None:
        yield "Service", str(view.error), "bad"
        return
    answer = view.answer
    up = shown_age(answer.time - answer.started)
    seconds = shown_duration(view.seconds)
    text = f"{view.url}, release {answer.version}, up for {up}, user {answer.user}"
    yield "Service", f"{text}, answers in {seconds}", None
    yield _database_line(answer.database)
    yield _broker_line(answer)
    counts = {name: queue.messages for name, queue in answer.queues.items()}
    aside = counts.pop("dead-letters", 0)
    if counts:
        waiting = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield "Queues", f"{waiting}; dead letters {aside}", "bad" if aside else None


def _database_line(database: DatabaseDocument) -> Line:
    text, free = f"{database.kind}, schema {database.revision}", database.free_bytes
    if free is None:
        return "Database", text, None
    if database.is_nearly_full:
        said = (
            f"{text}, its disk is full" if free == 0 else f"{text}, only {shown_bytes(free)} free"
        )
        return "Database", f"{said}: make room there, or no task and no result can be stored", "bad"
    return "Database", f"{text}, {shown_bytes(free)} free", None


def _broker_line(answer: ServiceStatusAnswer) -> Line:
    broker = answer.broker
    called = broker.server or "unknown"
    age = "" if broker.since is None else f" for {shown_age(answer.time - broker.since)}"
    if broker.alarm:
        text = f"{called} at {broker.address}, connected{age}, but takes no messages: "
        return "Broker", f"{text}{broker.alarm}", "bad"
    if broker.connected:
        return "Broker", f"{called} at {broker.address}, connected{age}", None
    return "Broker", f"{called} at {broker.address}, away{age}: {broker.reason}", "bad"


def _endpoint_lines(view: EndpointView) -> Iterator[Line]:
    yield "Endpoint", _endpoint_text(view), _TONES.get(view.status)
    yield from _process_line(view)
    if view.state is None:
        return
    report = view.state.report
    if view.state.status != "online":
        yield "Tasks", _waiting(view), None
        return
    as_of = _as_of(view)
    if report.get("trouble"):
        yield "Trouble", f"{report['trouble']}{as_of}", "bad"
    if isinstance(report.get("user_endpoints"), list):
        yield "Users", _user_endpoints(report["user_endpoints"]) + as_of, None
        yield "Tasks", _waiting(view), None
        return
    for title, text, tone in _flux_lines(report):
        is_number = title != "Blocks" or report.get("blocks")
        yield title, f"{text}{as_of if is_number else ''}", tone
    yield "Workers", _workers(report) + as_of, None
    yield "Jobs", _jobs(report) + as_of, None
    agent = report.get("agent")
    if not isinstance(agent, Mapping):
        yield "Tasks", _waiting(view), None
        return
    yield "Tasks", f"{_waiting(view)}; {_taken(agent)}{as_of}", None
    yield "Rates", _rates(agent) + as_of, None


def _user_endpoints(listed: Sequence[object]) -> str:
    """Return the user endpoints of a multi-user endpoint, by user and account."""
    known = [each for each in listed if isinstance(each, Mapping)]
    names = Counter(f"{each.get('user')} (as {each.get('account')})" for each in known)
    shown = ", ".join(f"{name} x{n}" if n > 1 else name for name, n in sorted(names.items()))
    noun = "user endpoint" if len(known) == 1 else "user endpoints"
    return f"{len(known)} {noun}{f': {shown}' if shown else ''}"


def _as_of(view: EndpointView) -> str:
    """Return the age of an endpoint's last report, as a suffix for its numbers."""
    seen = view.state.last_seen if view.state is not None else None
    return "" if seen is None else f" ({shown_age(time.time() - seen)} ago)"


def _endpoint_text(view: EndpointView) -> str:
    target, state = view.target, view.state
    called = target.name
    if target.endpoint_id is not None and target.endpoint_id != target.name:
        called += f" ({target.endpoint_id})"
    if state is None:
        return f"{called}, {view.error or _never(view)}"
    now = time.time()
    reported = (
        f"reported {shown_age(now - state.last_seen)} ago" if state.last_seen is not None else ""
    )
    if state.status == "online":
        since = ""
        if state.since is not None:
            since = f" for {shown_age(now - state.since)} (since {shown_moment(state.since)})"
        return f"{called}, online{since}, {reported}"
    return f"{called}, {_offline(view, now)}"


def _never(view: EndpointView) -> str:
    if view.target.endpoint_id is None:
        return "never started: " + start_command(view.target.name)
    return "the service does not say how it is"


def _offline(view: EndpointView, now: float) -> str:
    state = view.state
    assert state is not None
    if state.since is None:
        return f"offline, {Absence.NEVER}"
    if state.absence is Absence.ENDED:
        age = shown_age(now - state.since)
        return (
            f"offline: its process here has ended, after its last report {age} ago; the service "
            "has not missed one yet"
        )
    age = f"{shown_age(now - state.since)} (since {shown_moment(state.since)})"
    if state.absence is Absence.STOPPED:
        return f"offline for {age}, it was stopped"
    return (
        f"offline for {age}, when its last report came: it was killed, or its reports do not reach "
        "the broker"
    )


def _process_line(view: EndpointView) -> Iterator[Line]:
    report = view.state.report if view.state is not None else {}
    local = view.target.local
    if local is not None and local.pid is not None:
        reason = f": {local.reason}" if local.reason else ""
        text = f"pid {local.pid} on {local.hostname}, {local.status}{reason}"
        yield "Process", text, "bad" if local.status == "disconnected" or reason else None
    elif local is not None:
        ended = f"none here, it has ended: {local.reason}. " if local.reason else "none here: "
        yield "Process", ended + start_command(view.target.name), "bad" if local.reason else None
    elif view.status == "online" and "pid" in report:
        yield "Process", f"pid {report['pid']} on {report.get('hostname', 'unknown')}", None


def _flux_lines(report: Mapping[str, Any]) -> Iterator[Line]:
    described = report.get("executor_description") or report.get("engine_type") or "unknown"
    usage = report.get("usage") or {}
    parts = [str(described)]
    for kind in ("cores", "gpus"):
        allocated = usage.get(f"{kind}_allocated")
        there = (allocated or 0) + usage.get(f"{kind}_free", 0)
        if allocated is not None and there:
            parts.append(f"{allocated} of {there} {kind} allocated")
    if usage.get("nodes_down"):
        parts.append(f"{usage['nodes_down']} nodes down")
    if usage.get("expires"):
        left = usage["expires"] - time.time()
        parts.append(f"ends in {shown_duration(left)}" if left > 0 else "has ended")
    if report.get("ending"):
        parts.append("it is ending or gone: nothing more is started")
    title = "Flux" if report.get("executor") == "flux" else "Executor"
    yield title, ", ".join(parts), None
    blocks = report.get("blocks")
    if isinstance(blocks, list):
        yield "Blocks", "; ".join(_block(each) for each in blocks) or "none now", None
    elif report.get("executor") == "flux":
        yield "Blocks", "none of its own: it uses the instance that it runs in", None


def _block(block: Mapping[str, Any]) -> str:
    jobid = block.get("jobid")
    text = f"{shown_jobid(jobid)} {block.get('state', 'unknown')}"
    if block.get("nodes"):
        text += f" on {block['nodes']} nodes"
    if block.get("expires"):
        text += f", ends in {shown_duration(max(0.0, block['expires'] - time.time()))}"
    if block.get("tasks"):
        text += f", {block['tasks']} tasks"
    return text


def _workers(report: Mapping[str, Any]) -> str:
    workers, idle = report.get("total_workers"), report.get("idle_workers")
    if not isinstance(workers, int) or not isinstance(idle, int):
        return "unknown"
    starting, draining = report.get("starting_workers", 0), report.get("draining_managers", 0)
    if not workers and (why := report.get("workers_error")):
        return f"none can be started: {why}"
    if not workers:
        return f"{starting} starting" if starting else "none ready; they start as tasks come"
    nodes = report.get("worker_nodes", 1)
    on = "1 node" if nodes == 1 else f"{nodes} nodes"
    text = f"{workers} on {on}: {workers - idle} busy, {idle} idle"
    if starting:
        text += f"; {starting} starting"
    if draining:
        text += "; some make room for a job"
    return text


def _jobs(report: Mapping[str, Any]) -> str:
    jobs, waiting = report.get("jobs"), report.get("waiting_jobs")
    if not isinstance(jobs, int) or not isinstance(waiting, int):
        return "unknown"
    text = f"{jobs - waiting} running, {waiting} waiting for resources"
    held = report.get("held_allocations")
    if isinstance(held, int) and held:
        text += f"; {held} allocation{'' if held == 1 else 's'} held for MPI tasks"
    return text


def _waiting(view: EndpointView) -> str:
    queue = view.state.queue if view.state is not None else None
    return "queue unknown" if queue is None else f"{queue.messages} in the queue"


def _taken(agent: Mapping[str, Any]) -> str:
    paused = " (as many as it takes)" if agent.get("paused") else ""
    return (
        f"{agent.get('running')} taken{paused}, {agent.get('unconfirmed')} results on their way, "
        f"{agent.get('finished')} finished since its start"
    )


def _rates(agent: Mapping[str, Any]) -> str:
    parts = []
    for key, verb in (("accepted_rates", "taken"), ("finished_rates", "finished")):
        rates = agent.get(key) or {}
        shown = ", ".join(f"{rate:.3g} ({window})" for window, rate in rates.items())
        parts.append(f"{verb} {shown}")
    return "tasks/s " + "; ".join(parts)


def _row(view: EndpointView) -> Row:
    state = view.state
    report = state.report if state is not None and state.status == "online" else {}
    agent = report.get("agent") or {}
    workers, idle = report.get("total_workers"), report.get("idle_workers")
    busy = workers - idle if isinstance(workers, int) and isinstance(idle, int) else None
    since = state.since if state is not None else None
    rate = (agent.get("finished_rates") or {}).get("1m")
    queue = state.queue if state is not None else None
    local = view.target.local
    cells = (
        view.target.name,
        view.target.endpoint_id,
        local.status if state is None and local is not None else view.status,
        None if since is None else shown_age(time.time() - since),
        None
        if not report or state is None or state.last_seen is None
        else shown_age(time.time() - state.last_seen),
        report.get("executor"),
        workers,
        busy,
        report.get("jobs"),
        None if queue is None else queue.messages,
        agent.get("running"),
        None if rate is None else f"{rate:.3g}",
    )
    return Row(["-" if cell is None else str(cell) for cell in cells], _TONES.get(view.status))
