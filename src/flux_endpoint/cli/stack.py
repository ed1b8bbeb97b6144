"""`flux-endpoint up` and `down`: the whole stack on one machine."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys

import click

from flux_endpoint import logs, paths
from flux_endpoint.cli.progress import WaitingLine
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.paths import HOME_VARIABLE
from flux_endpoint.stack.detached import (
    REMAINS_TIMEOUT,
    STOP_TIMEOUT,
    ProgressReporter,
    start_detached,
    stop_stack,
)
from flux_endpoint.stack.supervisor import Ready, Stack, StackOptions

_EXECUTORS = {
    "flux": "flux (jobs of the Flux instance at $FLUX_URI)",
    "local": "local (processes of this machine; inside a Flux instance it would use Flux)",
}


@click.command()
@click.option("--detach", is_flag=True, help="Run in the background; return when it is ready.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="The service's port.  [default: as last time, else 8080, else a free one]",
)
@click.option("--endpoint", default="local", show_default=True, help="Name of the endpoint.")
@click.option("--no-endpoint", is_flag=True, help="Run broker and service only.")
@click.option("--report-fd", type=int, hidden=True)
def up(
    *, detach: bool, port: int | None, endpoint: str, no_endpoint: bool, report_fd: int | None
) -> int:
    """Run broker, service and one endpoint on this machine.

    State is kept in $FLUX_ENDPOINT_HOME (~/.flux_endpoint); its credentials.json tells clients
    where the service is. In the foreground the stack ends with Ctrl-C (exit status 130), SIGTERM or
    SIGHUP (0), and with the process that started it. Programs that die are started again.
    """
    options = StackOptions(port=port, endpoint=None if no_endpoint else endpoint)
    if detach:
        ready = start_detached(options, _say)
        _show(ready, "flux-endpoint down")
        return 0
    logs.configure("WARNING")
    if report_fd is not None:
        return _run_in_background(options, ProgressReporter(report_fd))
    stack = Stack(options, say=_say, on_ready=lambda ready: _show(ready, "Ctrl-C"))
    return stack.run()


@click.command()
def down() -> None:
    """End what `up` runs, and wait until it is gone."""
    with WaitingLine("Ending", STOP_TIMEOUT + REMAINS_TIMEOUT):
        stopped = stop_stack()
    if stopped is None:
        click.echo("Nothing runs here.")
    else:
        pid, url = stopped.pid or "unknown", stopped.service_url or "URL unknown"
        click.echo(f"Ended (pid {pid}, {url}).")


def _run_in_background(options: StackOptions, reporter: ProgressReporter) -> int:
    def say(line: str) -> None:
        _say(line)
        reporter.say(line)

    options = StackOptions(port=options.port, endpoint=options.endpoint, follow_parent=False)
    try:
        return Stack(options, say=say, on_ready=reporter.ready).run()
    except FluxEndpointError as error:
        reporter.failed(str(error))
        raise
    finally:
        reporter.close()


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the stack must end even if its terminal is gone
        click.echo(line)


def _show(ready: Ready, how_to_end: str) -> None:
    state = ready.state
    lines = ["", f"Ready after {ready.seconds:.1f} s.", "", f"  service   {state.service_url}"]
    if state.endpoint_id:
        lines += [
            f"  endpoint  {state.endpoint_id} ({state.endpoint_name})",
            f"  executor  {_EXECUTORS.get(ready.executor, ready.executor or 'unknown')}",
            "",
            "From another terminal:",
            "",
            *(f"  {line}" for line in _snippet(state.endpoint_id)),
        ]
    lines += ["", f"{how_to_end} ends it.", ""]
    for line in lines:
        _say(line)


def _snippet(endpoint_id: str) -> list[str]:
    home = os.environ.get(HOME_VARIABLE)
    setting = f"{HOME_VARIABLE}={shlex.quote(str(paths.home()))} " if home else ""
    return [
        f"{setting}{shlex.quote(sys.executable)} - <<'END'",
        "from flux_endpoint import Executor",
        "def double(x):",
        "    return x * 2",
        f'with Executor(endpoint_id="{endpoint_id}") as ex:',
        "    print(ex.submit(double, 7).result())",
        "END",
    ]
