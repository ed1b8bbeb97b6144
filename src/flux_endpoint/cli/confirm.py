"""Asks before something is removed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

yes_option: Callable[[Any], Any] = click.option(
    "--yes", is_flag=True, help="Don't ask; needed where standard input is no terminal."
)


def confirm(question: str, *, yes: bool) -> bool:
    """Return whether to go on.

    Args:
        question: the question, without a question mark.
        yes: the value of `--yes`.

    Raises:
        click.UsageError: nobody can be asked.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("nothing was removed: add --yes, since nobody can be asked here")
    return click.confirm(f"{question}?", err=True)
