"""The command `flux-endpoint` and the list of what it can do.

Each command is imported only when it is used, so that none pays for what another needs.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from flux_endpoint.errors import FluxEndpointError

#: Command name -> "module:attribute" of the click command that carries it out.
COMMANDS = {
    "up": "flux_endpoint.cli.stack:up",
    "down": "flux_endpoint.cli.stack:down",
    "configure": "flux_endpoint.cli.endpoint:configure",
    "start": "flux_endpoint.cli.endpoint:start",
    "stop": "flux_endpoint.cli.endpoint:stop",
    "list": "flux_endpoint.cli.endpoint:list_endpoints",
    "service": "flux_endpoint.cli.service:service",
    "jobspec": "flux_endpoint.cli.jobspec:jobspec",
    "plugins": "flux_endpoint.cli.plugins:plugins",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flux-endpoint")
def cli() -> None:
    """Functions as a service for clusters that run Flux."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one sentence and exit code 1, never a traceback."""
    # As `flux endpoint …` it is called so in its help; the processes that it starts are not.
    prog_name = os.environ.pop("FLUX_ENDPOINT_PROG", "flux-endpoint")
    try:
        status: Any = cli.main(args=args, prog_name=prog_name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except FluxEndpointError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
