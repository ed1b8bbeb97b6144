"""Progress of long work: a bar, on standard error and only if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click

Item = TypeVar("Item")


@contextmanager
def counted(items: Iterable[Item], length: int, label: str) -> Iterator[Iterable[Item]]:
    """Show how many of `length` items were worked on.

    Args:
        items: what is worked on.
        length: how many there are.
        label: what is done to them.
    """
    hidden = not sys.stderr.isatty() or length < 2
    with click.progressbar(
        items, length=length, label=label, file=sys.stderr, hidden=hidden, show_pos=True
    ) as bar:
        yield bar
