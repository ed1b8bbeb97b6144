"""Tables, colours, job ids and durations on a terminal, as in Flux's own commands."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import click

from flux_endpoint.protocol.jobid import format_jobid

Command = TypeVar("Command", bound=Callable[..., Any])
#: The tone of a row; each has the colour that `flux jobs` uses for it.
Tone = Literal["good", "bad", "active", "quiet"]

_COLORS: dict[Tone, str] = {
    "good": "\033[01;32m",  # a job that completed
    "bad": "\033[01;31m",  # one that failed or ran out of time
    "active": "\033[01;34m",  # one that is an instance itself
    "quiet": "\033[37m",  # one that was cancelled
}
_RESET = "\033[0;0m"


@dataclass(frozen=True)
class Column:
    """A column: its title, and whether its cells are right-aligned, like numbers and ids."""

    title: str
    right: bool = False


@dataclass(frozen=True)
class Row:
    """A row: a text for each column, and its colour."""

    cells: Sequence[str]
    tone: Tone | None = None


def color_option(command: Command) -> Command:
    """Add `--color[=WHEN]` to a command; it gets the argument `color`, whether to use colours."""
    option = click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        is_flag=False,
        flag_value="always",
        default="auto",
        metavar="[WHEN]",
        callback=lambda _context, _option, when: _wants_color(when),
        help="Use colours: auto, always or never; $NO_COLOR means never.  [default: auto]",
    )
    return option(command)


def _wants_color(when: str) -> bool:
    if when == "auto":
        return not os.environ.get("NO_COLOR") and sys.stdout.isatty()
    return when == "always"


def render(columns: Sequence[Column], rows: Sequence[Row], *, color: bool) -> str:
    """Return a table as text: a line of titles, then a line per row."""
    titles = Row([column.title for column in columns])
    table = [titles, *rows]
    widths = [max(len(row.cells[i]) for row in table) for i in range(len(columns))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row.cells, widths, columns, strict=True)
        ]
        line = " ".join(cells).rstrip()
        lines.append(toned(line, row.tone if color else None))
    return "\n".join(lines)


def toned(text: str, tone: Tone | None) -> str:
    """Return text in the colour of `tone`."""
    return f"{_COLORS[tone]}{text}{_RESET}" if tone else text


def shown_jobid(jobid: int | None) -> str:
    """Return a job id as Flux prints it, `ƒ2WXGLe`; with a plain `f` where `ƒ` is unavailable."""
    if jobid is None:
        return "-"
    text = format_jobid(jobid)
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    if os.environ.get("FLUX_F58_FORCE_ASCII") or "utf" not in encoding:
        return f"f{text[1:]}"
    return text


def shown_duration(seconds: float | None) -> str:
    """Return a duration as Flux prints it, in Flux Standard Duration: `0.162s`, `1.503h`, `inf`."""
    if seconds is None:
        return "-"
    if math.isinf(seconds):
        return "inf"
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.4g}{unit}"
    if seconds < 1e-3:
        return "0s"
    return f"{seconds:.4g}s" if seconds >= 10 else f"{seconds:.3f}s"


def shown_age(seconds: float) -> str:
    """Return an age in its largest unit: `12s`, `5m`, `3h`, `2d`.

    A time in the future, by another machine's clock, counts as now.
    """
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(max(seconds, 0))}s"


def shown_moment(moment: float) -> str:
    """Return a time (seconds since the epoch) as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def shown_bytes(count: float) -> str:
    """Return a number of bytes with a binary unit: `512 B`, `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.3g} TiB"
