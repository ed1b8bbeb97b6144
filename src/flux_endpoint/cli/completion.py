"""`flux-endpoint completion`: shell completion of this command line."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from flux_endpoint.cli.main import COMPLETE_VARIABLE, cli

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
def completion(*, shell: str | None) -> None:
    """Print the code that makes a shell complete this command line.

    SHELL is bash, zsh or fish; default: from $SHELL. Add to the shell's start-up file:

    \b
    eval "$(flux-endpoint completion bash)"        # ~/.bashrc
    eval "$(flux-endpoint completion zsh)"         # ~/.zshrc, after compinit
    flux-endpoint completion fish | source         # ~/.config/fish/config.fish
    """  # noqa: D301 - click wants the character itself
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise click.UsageError(
            f"$SHELL is {os.environ.get('SHELL', 'not set')!r}: name the shell, {', '.join(SHELLS)}"
        )
    kind = get_completion_class(name)
    assert kind is not None
    click.echo(kind(cli, {}, "flux-endpoint", COMPLETE_VARIABLE).source())
