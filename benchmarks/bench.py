"""Compare this project with its peers: the same work in turn, as tables, data and a figure.

    make bench                  all default rows; updates docs/performance.md
    make bench-quick            the same rows in less than three minutes
    make bench ROWS="mpi jobs"  some rows, or all rows of a level; writes only data and figures

In each round, each contender has one turn, and nothing else of the benchmark runs meanwhile. Every
second round has the reverse order. A ratio is computed from two values of the same round. The
tables show the median of all rounds, the smallest and the largest.
"""

from __future__ import annotations

import argparse
import datetime as dt
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import report
from end_to_end_level import END_TO_END
from engine_level import ENGINE
from features_level import FEATURES
from levels import Comparison, Level, Station
from machine import BUSY, Load, load, this_machine
from peers import PEERS, ROOT, TAPS, ContenderError, versions
from ratio_chart import Bar, draw
from report import Record
from scaling_level import SCALING
from taps_level import TAPS_APPS

LEVELS = (ENGINE, END_TO_END, SCALING, FEATURES, TAPS_APPS)
#: The levels that run by default.
DEFAULT = ("engine", "end-to-end")
DOCUMENT = ROOT / "docs" / "performance.md"
#: Levels whose tables are in another page.
OTHER_DOCUMENTS = {FEATURES.key: ROOT / "docs" / "peers.md"}
OUTPUT = ROOT / ".bench"
ROUNDS, QUICK_ROUNDS = 5, 1
#: Time (s) for measuring the load of the machine before a run, and before each turn.
WATCH, WATCH_TURN = 3.0, 0.3


@dataclass(frozen=True)
class Part:
    """The rows of one level that a run measures."""

    level: Level
    rows: frozenset[str]

    @property
    def whole(self) -> bool:
        return self.rows == {row.key for row in self.level.rows}


def chosen(words: Sequence[str]) -> list[Part]:
    """Return the chosen parts.

    Args:
        words: keys of rows and levels; none: the default levels.

    Raises:
        ValueError: a word is the key of neither.
    """
    wanted = set(words or DEFAULT)
    parts = []
    for level in LEVELS:
        rows = {row.key for row in level.rows}
        mine = rows if level.key in wanted else rows & wanted
        wanted -= rows | {level.key}
        if mine:
            parts.append(Part(level, frozenset(mine)))
    if wanted:
        known = [f"{level.key}: {' '.join(r.key for r in level.rows)}" for level in LEVELS]
        raise ValueError(f"no rows {' '.join(sorted(wanted))}; there are\n" + "\n".join(known))
    return parts


def measure(part: Part, *, rounds: int, quick: bool, versions: dict[str, str]) -> Record:
    """Let all contenders take their turns.

    Args:
        part: the rows.
        rounds: number of turns of each contender.
        quick: whether to run only a few tasks.
        versions: versions of the measured software, by name.
    """
    level = part.level
    counts = {row.key: row.count_in(quick=quick) for row in level.rows if row.key in part.rows}
    now = dt.datetime.now(dt.UTC)
    begun = f"{now:%Y-%m-%d %H:%M}"
    record = Record(level.key, begun, quick, this_machine(), versions, counts)
    stations = [s for s in level.stations if part.rows.intersection(s.rows)]
    for round_number in range(rounds):
        for station in stations if round_number % 2 == 0 else stations[::-1]:
            say(f"{level.title}, round {round_number + 1} of {rounds}: {station.name}")
            record.loads.append(load(WATCH_TURN))
            turn(record, station, round_number)
    return record


def turn(record: Record, station: Station, round_number: int) -> None:
    """Let one station take its turn. A failure is recorded, and the benchmark continues."""
    counts = {row: n for row, n in record.counts.items() if row in station.rows}
    try:
        for answer in station.take_turn(counts):
            record.add(round_number, answer.row, answer.contender, answer.value)
    except (ContenderError, AssertionError, OSError, subprocess.SubprocessError) as failure:
        record.failures.append(f"{station.name}: {' '.join(str(failure).split())}")
        say(f"FAILED: {failure}")


def bars(record: Record, level: Level) -> list[Bar]:
    """Return the bars of the figure: one for each comparison with a peer."""
    rows = {row.key: row for row in level.rows}
    found = []
    for comparison in level.comparisons:
        ratio = report.compare(record, comparison)
        if ratio is None or comparison.peer is None:
            continue
        ends = [ratio.median, ratio.least, ratio.most]
        bound = comparison.bound
        if rows[comparison.row].better == "less":
            ends = [1 / end for end in ends]
            bound = None if bound is None else 1 / bound
        name = _name(comparison, level)
        found.append(Bar(name, ends[0], min(ends), max(ends), bound))
    return found


def _name(comparison: Comparison, level: Level) -> str:
    titles = {row.key: row.title for row in level.rows}
    ours = f" ({comparison.ours})" if comparison.ours != level.comparisons[0].ours else ""
    return f"{titles[comparison.row]}{ours} — {report.against(comparison, level)}"


def write(record: Record, level: Level, directory: Path, stem: str) -> None:
    """Write a run's data and figure."""
    directory.mkdir(exist_ok=True)
    (directory / f"{stem}.json").write_text(report.data(record, level), encoding="utf-8")
    marks = ["quick run"] if record.quick else []
    marks += ["machine busy: worth nothing"] if record.busy else []
    title = f"{level.title}: ours against its peers, {record.begun} UTC"
    figure = draw(title + (f" ({', '.join(marks)})" if marks else ""), bars(record, level))
    (directory / f"{stem}.svg").write_text(figure, encoding="utf-8")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def refuse_busy(found: Load, *, anyway: bool) -> None:
    """Exit if other programs use the machine; with `anyway`, only print a warning."""
    if not found.busy:
        return
    told = (
        f"the machine is busy: others have {found.share:.0%} of its cores (at most {BUSY:.0%} is "
        f"allowed), load average {found.average:.1f}"
    )
    if not anyway:
        sys.exit(f"bench: {told}. Wait, or measure what is worth nothing: make … BUSY=yes")
    say(f"{'!' * 78}\n{told.capitalize()}.\nWhat is measured now is worth nothing.\n{'!' * 78}")


def main() -> int:
    """Run the chosen parts, and print and write their results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="few tasks, one round")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}; quick: {QUICK_ROUNDS}")
    parser.add_argument("--busy", action="store_true", help="go on if others use the machine")
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md again")
    parser.add_argument("rows", nargs="*", help="rows or levels; default: " + " ".join(DEFAULT))
    options = parser.parse_args()
    try:
        parts = chosen(options.rows)
    except ValueError as error:
        parser.error(str(error))
    if not PEERS.exists():
        parser.error(f"there is no {PEERS}: make bench installs it")
    if TAPS_APPS in [part.level for part in parts] and not TAPS.exists():
        parser.error("there is no TaPS: make bench ROWS=taps TAPS=DIRECTORY, its source tree")
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    refuse_busy(load(WATCH), anyway=options.busy)
    failed, found = False, versions()
    for part in parts:
        record = measure(part, rounds=rounds, quick=options.quick, versions=found)
        print(f"\n## {part.level.title}\n\n{report.text(record, part.level)}\n", flush=True)
        write(record, part.level, OUTPUT, part.level.key)
        if options.docs and part.whole:
            write(record, part.level, DOCUMENT.parent, f"performance-{part.level.key}")
            document = OTHER_DOCUMENTS.get(part.level.key, DOCUMENT)
            report.put(document, part.level.key, report.text(record, part.level))
        failed = failed or bool(record.failures)
    say(f"Data and figures: {OUTPUT}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
