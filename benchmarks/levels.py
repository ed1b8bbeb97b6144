"""The structure of a benchmark: rows, contenders and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """A kind of work and its measured value.

    Args:
        key: its name on the command line and in the data.
        title: its name in the tables.
        unit: unit of its values.
        count: number of tasks.
        quick: number of tasks in a quick run.
        better: whether larger or smaller values are better.
    """

    key: str
    title: str
    unit: str
    count: int
    quick: int
    better: Literal["more", "less"] = "more"

    def count_in(self, *, quick: bool) -> int:
        """Return the number of tasks in a run."""
        return self.quick if quick else self.count


@dataclass(frozen=True)
class Comparison:
    """A comparison of one of our values with a peer's.

    Args:
        row: key of the row.
        ours: one of our contenders.
        peer: the other contender; `None`: the value is only compared with the bound.
        bound: required ratio of our value to the peer's, or required value if there is no peer: the
            least or the most, as for the row; `None`: there is no requirement.
        to: key of the peer's row; default: the same row.
    """

    row: str
    ours: str
    peer: str | None
    bound: float | None = None
    to: str | None = None


@dataclass(frozen=True)
class Answer:
    """A measured value of a contender."""

    row: str
    contender: str
    value: float


#: Takes a turn, for a number of tasks by row.
TakeTurn = Callable[[dict[str, int]], Iterator[Answer]]


@dataclass(frozen=True)
class Station:
    """Contenders that are measured together; nothing else runs meanwhile.

    Args:
        name: its name in messages.
        rows: keys of the rows that it can measure.
        take_turn: starts it, measures, and ends it.
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
