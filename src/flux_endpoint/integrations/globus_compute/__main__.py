"""`python -m flux_endpoint.integrations.globus_compute enable | disable | status`."""

from __future__ import annotations

import sys

import click

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.integrations.globus_compute import switch


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Let the official Globus Compute endpoint of this environment run tasks on Flux.

    Enabled, `type: FluxEngine` can be used in its user_config_template.yaml.j2.
    """


@main.command()
def enable() -> None:
    """Write one file into this environment's site-packages."""
    click.echo(f"Enabled: wrote {switch.enable()}")
    release = switch.official_release()
    if release is not None and not release.startswith(f"{switch.TESTED}."):
        click.echo(
            f"Note: {switch.OFFICIAL} {release} is installed; this is tested with {switch.TESTED}.",
            err=True,
        )


@main.command()
def disable() -> None:
    """Remove that file."""
    was_there = switch.disable()
    click.echo(f"Disabled: removed {switch.path_of_file()}" if was_there else "It is not enabled.")


@main.command()
def status() -> None:
    """Say how it stands; exit status 1 unless a new process finds the engine."""
    found = switch.status()
    click.echo(f"{switch.OFFICIAL:<24} {found.official or 'not installed here'}")
    click.echo(f"{'file':<24} {found.file}{'' if found.enabled else ' (not there)'}")
    click.echo(f"{'type: FluxEngine':<24} {found.engine or 'unknown to the official endpoint'}")
    if found.problem:
        click.echo(f"{'problem':<24} {found.problem}")
    if found.engine is None:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main(prog_name="python -m flux_endpoint.integrations.globus_compute")
    except ConfigurationError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
