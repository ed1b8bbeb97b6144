"""`flux-endpoint configure`, `start`, `stop` and `list`: the endpoints of this machine."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from flux_endpoint.cli.options import complete_endpoint, local_name, put_json
from flux_endpoint.cli.process import quick_imports
from flux_endpoint.cli.progress import WaitingLine
from flux_endpoint.cli.table import (
    Column,
    Row,
    Tone,
    View,
    view_options,
)
from flux_endpoint.endpoint import lifecycle
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.processes import StartOrder

_COLUMNS = {
    "name": Column("NAME", least=8),
    "id": Column("ID", goes=1),
    "status": Column("STATUS"),
    "executor": Column("EXECUTOR", least=8),
}
_TONES: dict[str, Tone] = {"running": "good", "disconnected": "bad", "stopped": "quiet"}


@click.command()
@click.argument("name")
@click.option("--display-name", help="Name shown in lists.  [default: NAME]")
@click.option(
    "--multi-user",
    is_flag=True,
    help="A multi-user endpoint: it starts endpoints for its users, from a template.",
)
def configure(name: str, display_name: str | None, *, multi_user: bool) -> None:
    """Create an endpoint and its configuration file."""
    path = lifecycle.configure_endpoint(name, display_name, multi_user=multi_user)
    click.echo(f"Created endpoint {name}. Its configuration: {path}")
    if multi_user:
        click.echo(f"What users fill in is beside it; try it with: flux-endpoint render {name}")
    click.echo(f"Start it with: flux-endpoint start {name}")


@click.command()
@click.argument("name", callback=local_name, shell_complete=complete_endpoint)
@click.option(
    "--detach/--foreground",
    default=False,
    help="In the background, returning when it is ready; or in the foreground, until Ctrl-C.  "
    "[default: foreground]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    help="With --detach: seconds to wait until it is ready.  "
    f"[default: {lifecycle.START_TIMEOUT:g}, "
    f"but {lifecycle.AWAY_TIMEOUT:g} if the service or its broker is unreachable]",
)
@click.option("--report-fd", type=int, hidden=True)
def start(name: str, *, detach: bool, timeout: float | None, report_fd: int | None) -> int:
    """Start an endpoint.

    SIGTERM or Ctrl-C stops it gracefully: running tasks may finish for a few seconds
    (shutdown_grace); the others run after the next start. A second signal stops it at once.

    If the service or its broker is unreachable, the endpoint keeps trying. With --detach the
    command then says so and ends with exit code 69; the endpoint goes on in the background.
    """
    if not detach:
        return _run(name, lifecycle.StartReporter(report_fd))
    limit = lifecycle.START_TIMEOUT if timeout is None else timeout
    with WaitingLine(f"Starting {name}", limit) as waiting:
        started = lifecycle.start_detached(
            name, timeout=timeout, say=lambda line: waiting.say(f"Waiting: {line}")
        )
    click.echo(f"Endpoint {name} runs (pid {started.pid}, executor: {started.executor}).")
    click.echo(f"Its id: {started.endpoint_id}")
    return 0


def _run(name: str, reporter: lifecycle.StartReporter) -> int:
    order = StartOrder()
    try:
        with quick_imports():
            from flux_endpoint.endpoint.runner import Runner  # noqa: PLC0415 - only a start needs it

            importlib.import_module("flux_endpoint.engine.engine")  # slow, so before it waits

        def restart(environment: Mapping[str, str]) -> None:
            reporter.keep_for_restart()
            arguments = [sys.executable, *sys.orig_argv[1:]]
            environment = {**environment, **order.environment}
            os.execve(sys.executable, arguments, environment)  # noqa: S606 - this very program

        def notify(message: dict[str, Any]) -> None:
            reporter.tell(message)
            if "ready" in message:
                order.tell_ready()

        order.wait()
        return Runner(EndpointDirectory(name), notify=notify, restart=restart).run()
    except FluxEndpointError as error:
        reporter.tell({"failed": str(error)})
        raise
    except OSError as error:  # e.g. a full disk, where its log could not be written either
        where = error.filename or EndpointDirectory(name).path
        reporter.tell({"failed": f"{where}: {error.strerror or error}"})
        raise


@click.command()
@click.argument("name", callback=local_name, shell_complete=complete_endpoint)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=lifecycle.STOP_TIMEOUT,
    show_default=True,
    help="Seconds to wait for a graceful end before it is killed.",
)
@click.option("--pid", type=int, help="Only if this process runs it.")
def stop(name: str, *, timeout: float, pid: int | None) -> None:
    """Stop an endpoint, and wait until it is gone."""
    with WaitingLine(f"Stopping {name}", timeout):
        outcome = lifecycle.stop_endpoint(name, timeout=timeout, pid=pid)
    if outcome is None:
        by = "" if pid is None else f" as process {pid}"
        click.echo(f"Endpoint {name} was not running{by}.")
    elif outcome == "killed":
        click.echo(
            f"Endpoint {name} did not end within {timeout:g} s and was killed. "
            "Tasks that it had taken run after the next start."
        )
    else:
        click.echo(f"Endpoint {name} stopped.")


@click.command("list")
@view_options(_COLUMNS)
def list_endpoints(*, view: View) -> None:
    """List the endpoints, their status, and what runs their jobs."""
    listed = lifecycle.list_endpoints()
    if view.as_json:
        put_json([asdict(each) for each in listed])
        return
    if not listed:
        click.echo("No endpoints yet. Create one with: flux-endpoint configure NAME")
        return
    rows = [_row(each) for each in listed]
    view.put(_COLUMNS, rows)
    for each in listed:
        if each.reason:
            click.echo(f"{each.name}: {each.reason}")


def _row(endpoint: lifecycle.Listed) -> Row:
    executor = endpoint.executor or "-"
    if endpoint.flux_uri:
        executor += f" ({endpoint.flux_uri})"
    cells = (endpoint.name, endpoint.endpoint_id or "-", endpoint.status, executor)
    return Row(cells, _TONES.get(endpoint.status))
