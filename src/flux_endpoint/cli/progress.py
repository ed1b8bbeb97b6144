"""Progress of long operations, on standard error, if that is a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click

Item = TypeVar("Item")

#: Seconds before anything is shown, and between two updates.
_QUIET, _TICK = 0.5, 0.25
_WIDTH = 30
_ERASE = "\r\033[K"


@contextmanager
def counted(items: Iterable[Item], length: int, label: str) -> Iterator[Iterable[Item]]:
    """Show how many of `length` items are done.

    Args:
        items: the items.
        length: their number.
        label: what is done to them.
    """
    hidden = not sys.stderr.isatty() or length < 2
    with click.progressbar(
        items, length=length, label=label, file=sys.stderr, hidden=hidden, show_pos=True
    ) as bar:
        yield bar


class WaitingLine:
    """Shows how long something has been waited for, compared with the timeout.

    Use it in a `with` statement; the line disappears at the end.

    Args:
        label: what is waited for.
        limit: timeout in seconds.
    """

    def __init__(self, label: str, limit: float) -> None:
        self._label = label
        self._limit = limit
        self._over = threading.Event()
        self._drawing = threading.Lock()
        self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)

    def __enter__(self) -> WaitingLine:
        self._begun = time.monotonic()
        if sys.stderr.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
            click.echo(_ERASE, nl=False, err=True)

    def say(self, line: str) -> None:
        """Print a line above."""
        erase = _ERASE if self._thread.ident is not None else ""
        with self._drawing:
            click.echo(erase + line, err=True)

    def _draw(self) -> None:
        if self._over.wait(_QUIET):
            return
        while not self._over.wait(_TICK):
            passed = time.monotonic() - self._begun
            filled = min(_WIDTH, int(_WIDTH * passed / self._limit)) if self._limit else _WIDTH
            bar = f"[{'#' * filled}{'-' * (_WIDTH - filled)}]"
            text = f"{self._label} {bar} {passed:.0f} of at most {self._limit:g} s"
            with self._drawing:
                click.echo(f"{_ERASE}{text}", nl=False, err=True)
