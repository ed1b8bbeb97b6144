"""Makes tables of medians, spreads and ratios from the values in a record."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from levels import Comparison, Level, Row
from machine import BUSY, Load, Machine

#: The value of each round; `None`: there is none.
Values = list[float | None]


@dataclass
class Record:
    """The results of a run at one level, the source of its tables, figure and data.

    Args:
        level: key of the level.
        begun: date and time of its start, UTC.
        quick: whether it was a quick run, with few tasks.
        machine: the machine.
        versions: versions of the measured software, by name.
        counts: number of tasks by row.
        values: values of all rounds, by row and contender.
        loads: load of the machine before each turn.
        failures: description of each failed turn.
    """

    level: str
    begun: str
    quick: bool
    machine: Machine
    versions: dict[str, str]
    counts: dict[str, int]
    values: dict[str, dict[str, Values]] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, round_number: int, row: str, contender: str, value: float) -> None:
        """Add a value of a round; the first round has number 0."""
        values = self.values.setdefault(row, {}).setdefault(contender, [])
        values.extend([None] * (round_number + 1 - len(values)))
        values[round_number] = value

    def of(self, row: str, contender: str) -> Values:
        """Return a contender's values."""
        return self.values.get(row, {}).get(contender, [])

    @property
    def rounds(self) -> int:
        return max((len(v) for row in self.values.values() for v in row.values()), default=0)

    @property
    def busy(self) -> bool:
        """Whether other programs used the machine before one of the turns."""
        return any(load.busy for load in self.loads)


@dataclass(frozen=True)
class Spread:
    """Median and range of values."""

    median: float
    least: float
    most: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return median and range of values; `None` if there are no values."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    return Spread(statistics.median(found), min(found), max(found))


def ratio(ours: Values, peer: Values) -> Spread | None:
    """Return the spread of the ratios of our value to the peer's in each round.

    The speed of a machine varies over time, and values of the same round are the best to compare.
    """
    both = zip(ours, peer, strict=False)
    return spread(a / b for a, b in both if a is not None and b is not None and b > 0)


def compare(record: Record, comparison: Comparison) -> Spread | None:
    """Return the ratios, or our values if there is no peer; `None` if there are none."""
    ours = record.of(comparison.row, comparison.ours)
    if comparison.peer is None:
        return spread(ours)
    return ratio(ours, record.of(comparison.to or comparison.row, comparison.peer))


def reaches(found: Spread, bound: float, row: Row) -> bool:
    """Return whether the median meets a requirement."""
    return found.median >= bound if row.better == "more" else found.median <= bound


def number(value: float) -> str:
    """Return a number with three significant digits."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"


def head(record: Record) -> str:
    """Return the description of a run: its time, machine, versions and load."""
    shares = [load.share for load in record.loads]
    averages = [load.average for load in record.loads]
    rounds = "1 round" if record.rounds == 1 else f"{record.rounds} rounds"
    kind = "A quick run" if record.quick else "A run"
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    lines = [
        f"{kind} of {record.begun} UTC, {rounds} in turn, on {record.machine}.",
        f"{versions}.",
    ]
    if shares:
        lines.append(
            f"Before each turn others had {min(shares):.0%} to {max(shares):.0%} of the cores; "
            f"load average {min(averages):.1f} to {max(averages):.1f}."
        )
    if record.quick:
        lines.append("**Quick runs have few tasks and few rounds: their figures are rough.**")
    if record.busy:
        turns = sum(load.busy for load in record.loads)
        lines.append(
            f"**The machine was busy: before {turns} of {len(record.loads)} turns others had more "
            f"than {BUSY:.0%} of the cores. These figures are worth nothing.**"
        )
    return "\n".join(lines)


def ratios(record: Record, level: Level) -> str:
    """Return the table of comparisons."""
    rows = {row.key: row for row in level.rows}
    lines = []
    for comparison in level.comparisons:
        row = rows[comparison.row]
        if not record.values.get(row.key):
            continue
        lines.append(_ratio_line(record, level, comparison, row))
    header = ["work", "ours", "against", "ratio", "must reach", "does"]
    return table(header, lines)


def against(comparison: Comparison, level: Level) -> str:
    """Return the name of the peer in the tables."""
    if comparison.peer is None:
        return "nothing"
    if comparison.to is None:
        return level.contenders[comparison.peer]
    to = next(row.title for row in level.rows if row.key == comparison.to)
    return (
        to if comparison.peer == comparison.ours else f"{level.contenders[comparison.peer]}, {to}"
    )


def _ratio_line(record: Record, level: Level, comparison: Comparison, row: Row) -> list[str]:
    found = compare(record, comparison)
    bound = comparison.bound
    sign = "≥" if row.better == "more" else "≤"
    unit = "" if comparison.peer else f" {row.unit}"
    does = "" if bound is None or found is None else "yes" if reaches(found, bound, row) else "no"
    return [
        row.title,
        level.contenders[comparison.ours],
        against(comparison, level),
        _shown(found, unit),
        "" if bound is None else f"{sign} {bound:g}{unit}",
        does,
    ]


def measured(record: Record, level: Level) -> str:
    """Return the table of values."""
    lines = []
    for row in level.rows:
        for contender, title in level.contenders.items():
            values = record.values.get(row.key, {}).get(contender)
            if values:
                count = f"{record.counts[row.key]:,}"
                lines.append([row.title, title, count, _shown(spread(values), f" {row.unit}")])
    return table(["work", "by", "tasks", "median"], lines)


def _shown(found: Spread | None, unit: str) -> str:
    if found is None:
        return "failed"
    median = f"{number(found.median)}{unit}"
    if found.least == found.most:
        return median
    return f"{median} ({number(found.least)} to {number(found.most)})"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, its columns aligned."""
    rows = [[cell.replace("|", "\\|") for cell in line] for line in (header, *lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(r, widths, strict=True)] for r in rows]
    text = ["| " + " | ".join(row) + " |" for row in padded]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def text(record: Record, level: Level) -> str:
    """Return the complete report of a run."""
    parts = [head(record), ratios(record, level), measured(record, level)]
    if record.failures:
        parts.append("Turns that failed:\n\n" + "\n".join(f"- {each}" for each in record.failures))
    return "\n\n".join(parts)


def data(record: Record, level: Level) -> str:
    """Return a run as JSON: the measured values, and the comparisons."""
    rows = {row.key: row for row in level.rows}
    comparisons = []
    for comparison in level.comparisons:
        found = compare(record, comparison)
        if found is not None:
            told: dict[str, Any] = {**asdict(comparison), "found": asdict(found)}
            if comparison.bound is not None:
                told["reached"] = reaches(found, comparison.bound, rows[comparison.row])
            comparisons.append(told)
    whole = {
        **asdict(record),
        "rows": {row.key: asdict(row) for row in level.rows},
        "contenders": level.contenders,
        "comparisons": comparisons,
    }
    return json.dumps(whole, indent=1) + "\n"


def put(document: Path, level: str, content: str) -> None:
    """Replace a level's part of a document, which lies between two marks.

    Args:
        document: the document.
        level: key of the level.
        content: the new text.

    Raises:
        ValueError: the document does not have both marks in this order.
    """
    begin, end = f"<!-- benchmark: {level} -->", f"<!-- end of benchmark: {level} -->"
    old = document.read_text(encoding="utf-8")
    before, found, rest = old.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{document} has no line '{begin}' with '{end}' after it")
    document.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}", encoding="utf-8")
