"""Tables, colours, job ids and durations on a terminal, as in Flux's own commands."""

from __future__ import annotations

import functools
import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import click

from flux_endpoint.cli.options import json_option
from flux_endpoint.errors import suggestion
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
    """A column.

    Attributes:
        title: its title.
        right: whether its cells are right-aligned, like numbers and ids.
        least: the width to which its cells may be shortened; `None`: they are not.
        goes: in which order columns are left out where there is no room: the highest first; 0: it
            stays.
    """

    title: str
    right: bool = False
    least: int | None = None
    goes: int = 0


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


def terminal_width() -> int | None:
    """Return the width of the terminal; `None`: the output goes elsewhere, where any width fits."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _columns_options(known: Collection[str]) -> Callable[[Command], Command]:
    """Add `-o` and `--wide` to a command; it gets `chosen` (names, or `None`) and `wide`."""

    def names(
        _context: click.Context, _option: click.Parameter, text: str | None
    ) -> list[str] | None:
        if text is None:
            return None
        given = [name.strip().lower() for name in text.split(",")]
        for name in given:
            if name not in known:
                hint = suggestion(name, known, "there are")
                raise click.BadParameter(f"no column is called {name!r}; {hint}")
        return list(dict.fromkeys(given))

    def add(command: Command) -> Command:
        wide = click.option("--wide", is_flag=True, help="Show all of it, however wide it is.")
        chosen = click.option(
            "-o",
            "--columns",
            "chosen",
            metavar="NAMES",
            callback=names,
            help=f"Show these columns, separated by commas: {', '.join(known)}.",
        )
        return chosen(wide(command))

    return add


@dataclass(frozen=True)
class View:
    """How a command shows a list; see `view_options`.

    Attributes:
        chosen: names of the columns to show; `None`: those for which there is room.
        wide: whether lines may be wider than the terminal.
        as_json: whether to print JSON instead.
        color: whether to use colours.
    """

    chosen: list[str] | None
    wide: bool
    as_json: bool
    color: bool

    @property
    def width(self) -> int | None:
        """The most characters of a line; `None`: any."""
        return None if self.wide else terminal_width()

    def put(self, columns: Mapping[str, Column], rows: Sequence[Row]) -> None:
        """Print a table."""
        table = table_of(columns, rows, self.chosen, color=self.color, width=self.width)
        click.echo(table, color=self.color)


def view_options(known: Collection[str]) -> Callable[[Command], Callable[..., Any]]:
    """Add `-o`, `--wide`, `--json` and `--color` to a command; it gets the argument `view`.

    Args:
        known: names of the columns.
    """

    def add(command: Command) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_view(
            *args: Any,
            chosen: list[str] | None,
            wide: bool,
            as_json: bool,
            color: bool,
            **kwargs: Any,
        ) -> Any:
            return command(*args, view=View(chosen, wide, as_json, color), **kwargs)

        return _columns_options(known)(json_option(color_option(with_view)))

    return add


def render(
    columns: Sequence[Column], rows: Sequence[Row], *, color: bool, width: int | None = None
) -> str:
    """Return a table as text: a line of titles, then a line per row.

    Characters that control a terminal are replaced: other users may have chosen the texts.

    Args:
        columns: the columns.
        rows: the rows, with a cell for each column.
        color: whether to use colours.
        width: the most characters of a line: columns are shortened or left out for it, if they may.
    """
    rows = [replace(row, cells=[printable(cell) for cell in row.cells]) for row in rows]
    texts = [[column.title, *(row.cells[i] for row in rows)] for i, column in enumerate(columns)]
    naturals = [max(map(len, text)) for text in texts]
    places, widths = _fitted(columns, naturals, [_is_empty(text[1:]) for text in texts], width)
    columns = [columns[place] for place in places]
    lines = []
    for row in [Row([column.title for column in columns]), *_picked(rows, places)]:
        cells = [
            shortened(cell, width).rjust(width)
            if column.right
            else shortened(cell, width).ljust(width)
            for cell, width, column in zip(row.cells, widths, columns, strict=True)
        ]
        line = " ".join(cells).rstrip()
        lines.append(toned(line, row.tone if color else None))
    return "\n".join(lines)


def table_of(
    columns: Mapping[str, Column],
    rows: Sequence[Row],
    chosen: Sequence[str] | None,
    *,
    color: bool,
    width: int | None,
) -> str:
    """Return a table of the chosen columns, which are not left out; see `render`."""
    if chosen is None:
        return render(list(columns.values()), rows, color=color, width=width)
    names = list(columns)
    places = [names.index(name) for name in chosen]
    stay = [replace(columns[name], goes=0) for name in chosen]
    return render(stay, list(_picked(rows, places)), color=color, width=width)


def wrapped(text: str, width: int | None, indent: int) -> list[str]:
    """Return the lines of a text that is shown beside a title.

    Args:
        text: the text.
        width: the most characters of a line; `None`: any.
        indent: the characters before each line.
    """
    if width is None:
        return text.split("\n")
    room = max(width - indent, 20)
    lines = [
        textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False) or [""]
        for line in text.split("\n")
    ]
    return [part for parts in lines for part in parts]


def _picked(rows: Sequence[Row], places: Sequence[int]) -> Iterator[Row]:
    return (Row([row.cells[place] for place in places], row.tone) for row in rows)


def _is_empty(cells: Sequence[str]) -> bool:
    return all(cell in {"", "-"} for cell in cells)


def _fitted(
    columns: Sequence[Column], naturals: Sequence[int], empty: Sequence[bool], width: int | None
) -> tuple[list[int], list[int]]:
    """Return which columns to show, by their places, and their widths.

    Args:
        columns: the columns.
        naturals: the width of the longest cell of each.
        empty: whether nothing is in it.
        width: the most characters of a line; `None`: any.
    """
    places = list(range(len(columns)))
    if width is None:
        return places, list(naturals)
    least = [
        natural if column.least is None else min(natural, max(column.least, len(column.title)))
        for column, natural in zip(columns, naturals, strict=True)
    ]
    leaving = sorted(
        (place for place in places if columns[place].goes),
        key=lambda place: (empty[place], columns[place].goes),
    )
    while leaving and _line(naturals, places) > width and empty[leaving[-1]]:
        places.remove(leaving.pop())
    while leaving and _line(least, places) > width:
        places.remove(leaving.pop())
    left = max(0, width - _line(least, places))
    widths = []
    for place in places:
        more = min(left, naturals[place] - least[place])
        widths.append(least[place] + more)
        left -= more
    return places, widths


def _line(widths: Sequence[int], places: Sequence[int]) -> int:
    return sum(widths[place] for place in places) + len(places) - 1


def printable(text: str) -> str:
    """Return a text with `?` for each character that could control a terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "?" for each in text)


def shortened(text: str, width: int) -> str:
    """Return a text of at most `width` characters, with `…` at its end if it was longer."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


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
