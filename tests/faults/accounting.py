"""What became of each task: from what the tasks themselves wrote and what the client was given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

#: Seconds between a function's end and the kill of its worker that may cost its value: an agent
#: that was stopped for a while may not have taken it.
AT_THAT_TIME = 6.0


@dataclass
class Task:
    """A task and what is known of it.

    Attributes:
        kind: "function", "command" or "job".
        begun: when it began, each time (seconds since the epoch).
        completed: when it came to its last line, each time.
        delivered: each end that the client was given: "" for the right value, else what it was.
    """

    kind: str
    begun: list[float] = field(default_factory=list)
    completed: list[float] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)

    @property
    def reruns(self) -> list[tuple[float, float]]:
        """The ends after which it began again: the last before, and the beginning."""
        found = []
        for begun in self.begun:
            before = [each for each in self.completed if each < begun]
            if before:
                found.append((max(before), begun))
        return found


def read_evidence(lines: Iterable[str], tasks: dict[str, Task]) -> None:
    """Take the lines `NAME begun|completed SECONDS`; half of a line is what a kill leaves."""
    for line in lines:
        match line.split():
            case [name, "begun", at] if name in tasks:
                tasks[name].begun.append(float(at))
            case [name, "completed", at] if name in tasks:
                tasks[name].completed.append(float(at))


@dataclass
class Row:
    """A line of the table: how many tasks of a kind."""

    submitted: int = 0
    begun: int = 0
    completed: int = 0
    delivered: int = 0
    failed: int = 0
    lost: int = 0
    twice: int = 0
    begun_again: int = 0
    completed_again: int = 0


@dataclass
class Account:
    """All tasks, by kind, and what breaks a promise."""

    rows: dict[str, Row]
    broken: list[str]


def account(tasks: dict[str, Task], worker_kills: Sequence[float]) -> Account:
    """Count, and find what must not be.

    Args:
        tasks: by name.
        worker_kills: when workers, or what they run under, were killed. A function that completes
            on one at that time is run again: nobody else has its value.
    """
    rows: dict[str, Row] = {}
    broken: list[str] = []
    for name, task in tasks.items():
        row = rows.setdefault(task.kind, Row())
        row.submitted += 1
        row.begun += bool(task.begun)
        row.completed += bool(task.completed)
        row.delivered += bool(task.delivered)
        row.failed += any(task.delivered)
        row.begun_again += len(task.begun) > 1
        if not task.delivered:
            row.lost += 1
            broken.append(f"{name} was lost: it has no end")
        if len(task.delivered) > 1:
            row.twice += 1
            broken.append(f"{name} was delivered {len(task.delivered)} times")
        broken += [f"{name} ended wrongly: {each}" for each in task.delivered if each]
        if task.delivered == [""] and not task.completed:
            broken.append(f"{name} has a value and never completed")
        if task.reruns:
            row.completed_again += 1
        if task.kind == "function":
            broken += [
                f"{name} completed, and began again {begun - ended:.2f} s later"
                for ended, begun in task.reruns
                if not any(abs(kill - ended) <= AT_THAT_TIME for kill in worker_kills)
            ]
    return Account(rows, broken)


def table(rows: dict[str, Row]) -> str:
    """Return the table as it is printed."""
    columns = list(Row.__dataclass_fields__)
    titles = ["kind", *(each.replace("_", " ") for each in columns)]
    body = [[kind, *(str(getattr(row, each)) for each in columns)] for kind, row in rows.items()]
    widths = [max(len(line[n]) for line in [titles, *body]) for n in range(len(titles))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [titles, *body]
    )
