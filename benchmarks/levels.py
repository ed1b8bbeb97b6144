"""What is measured: rows, who takes part in them, and what is compared with what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """A kind of work and what is measured of it.

    Args:
        key: its name on the command line and in the data.
        title: its name in the tables.
        unit: of its values.
        count: how many tasks.
        quick: the same in a quick run.
        better: which values are the better ones.
    """

    key: str
    title: str
    unit: str
    count: int
    quick: int
    better: Literal["more", "less"] = "more"

    def count_in(self, *, quick: bool) -> int:
        """Return how many tasks a run has."""
        return self.quick if quick else self.count


@dataclass(frozen=True)
class Comparison:
    """What of ours is compared with what.

    Args:
        row: which work.
        ours: a contender.
        peer: another one; `None`: ours is compared with nothing but the bound.
        bound: what the ratio of ours to the peer's, or our value, must reach (at least or at most,
            as the row's better values are); `None`: it is only told.
        to: the peer's row, if it is another one.
    """

    row: str
    ours: str
    peer: str | None
    bound: float | None = None
    to: str | None = None


@dataclass(frozen=True)
class Answer:
    """A value that was measured."""

    row: str
    contender: str
    value: float


#: Takes a turn: measures so many tasks of these rows.
TakeTurn = Callable[[dict[str, int]], Iterator[Answer]]


@dataclass(frozen=True)
class Station:
    """What runs at a time, with nothing else beside it.

    Args:
        name: for messages.
        rows: keys of what can be measured of it.
        take_turn: starts it, measures, ends it.
    """

    name: str
    rows: tuple[str, ...]
    take_turn: TakeTurn


@dataclass(frozen=True)
class Level:
    """Rows that are measured in the same way."""

    key: str
    title: str
    rows: Sequence[Row]
    #: Titles by key, in the order of the tables.
    contenders: dict[str, str]
    stations: Sequence[Station]
    comparisons: Sequence[Comparison]
