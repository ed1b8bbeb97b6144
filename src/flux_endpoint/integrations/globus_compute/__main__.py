"""`python -m flux_endpoint.integrations.globus_compute enable | disable | status`."""

from __future__ import annotations

import sys

import click

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.integrations.globus_compute import pth_install


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Let the official Globus Compute endpoint of this environment run tasks on Flux.

    When enabled, `type: FluxEngine` can be used in the endpoint's user_config_template.yaml.j2.
    """


@main.command()
def enable() -> None:
    """Write one file into this environment's site-packages."""
    click.echo(f"Enabled: wrote {pth_install.enable()}")
    release = pth_install.official_release()
    if release is not None and not release.startswith(f"{pth_install.TESTED}."):
        click.echo(
            f"Note: {pth_install.OFFICIAL} {release} is installed; this is tested with "
            f"{pth_install.TESTED}.",
            err=True,
        )


@main.command()
def disable() -> None:
    """Remove that file."""
    was_there = pth_install.disable()
    click.echo(
        f"Disabled: removed {pth_install.path_of_file()}" if was_there else "It is not enabled."
    )


@main.command()
def status() -> None:
    """Show the state; exit status 1 unless a new process finds the engine."""
    found = pth_install.status()
    click.echo(f"{pth_install.OFFICIAL:<24} {found.official or 'not installed here'}")
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
