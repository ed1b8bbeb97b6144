"""`flux-endpoint restart`: ends an endpoint's agent and starts another in the background."""

from __future__ import annotations

import click

from flux_endpoint.cli.options import complete_endpoint, local_name
from flux_endpoint.cli.progress import WaitingLine
from flux_endpoint.endpoint import lifecycle, restarting


@click.command()
@click.argument("name", callback=local_name, shell_complete=complete_endpoint)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    help="Seconds to wait until it is ready again.  [default: as of `start --detach`]",
)
def restart(name: str, *, timeout: float | None) -> None:
    """Stop an endpoint, and start it again in the background.

    For a changed configuration, which is checked before anything is stopped, or a new release. It
    runs where it ran: in the Flux instance of before, whatever FLUX_URI is here. Running tasks may
    finish for a few seconds (shutdown_grace); the others run after the start. An endpoint that does
    not run is started.
    """
    directory = restarting.check_restart(name)
    limit = lifecycle.STOP_TIMEOUT + (lifecycle.START_TIMEOUT if timeout is None else timeout)
    with WaitingLine(f"Restarting {name}", limit) as waiting:
        started = restarting.restart(
            directory, timeout=timeout, say=lambda line: waiting.say(f"Waiting: {line}")
        )
    click.echo(f"Endpoint {name} runs (pid {started.pid}, executor: {started.executor}).")
