"""The work that every contender is given, and the clock by which it is done.

Imported by the programs in `contenders/`, by the Python of each: the standard library only.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Functions that each contender may run at a time.
WORKERS = 2
#: Seconds after which something that should happen counts as not happening.
PATIENCE = 120.0

#: Ends a task that was submitted: waits for it and returns its value.
Finish = Callable[[], Any]
#: Submits the task of this number.
Submit = Callable[[int], Finish]
#: Submits a call of one of the functions below.
Call = Callable[..., Finish]
#: Says whether this is the value that the task of this number must have.
Check = Callable[[int, Any], bool]


def typed(name: str, source: str) -> Any:
    """Return a function as if its user had typed it: it travels by value, with nothing beside it.

    Args:
        name: the function's.
        source: its definition.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace[name]


#: A function that does nothing; what it is given comes back, so that each result can be checked.
same = typed("same", "def same(value):\n    return value\n")
#: A function whose result is as large as it is told.
large = typed("large", "def large(size):\n    return b'x' * size\n")
#: A command that does nothing.
COMMAND = "true"
MIB = 1 << 20


def is_same(number: int, value: Any) -> bool:
    """Check a value of `same`."""
    return bool(value == number)


def went_well(_: int, value: Any) -> bool:
    """Check the result of a command."""
    return bool(value.returncode == 0)


class Turn:
    """What a contender is asked to do, and where its answers go.

    The order is the program's argument, a JSON object: `counts`, how many tasks for each row that
    is wanted; `answers`, the file for the answers, one JSON object a line; `directory`, an empty
    one to work in; `options`, what makes this contender differ from others of the same program.
    """

    def __init__(self) -> None:
        order = json.loads(sys.argv[1])
        self.counts: dict[str, int] = order["counts"]
        self.directory = Path(order["directory"])
        self.options: dict[str, Any] = order["options"]
        self._answers = Path(order["answers"])

    def wants(self, *rows: str) -> bool:
        """Say whether one of these rows is wanted."""
        return any(row in self.counts for row in rows)

    def answer(self, row: str, value: float) -> None:
        """Write down what was measured."""
        with self._answers.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, "value": value}) + "\n")

    def functions(self, call: Call, prefix: str = "") -> None:
        """Measure all rows of functions that are wanted.

        A row's name may have a number at its end: of tasks that are queued, bytes of each result.

        Args:
            call: submits a call of `same` or `large`.
            prefix: of the rows' names.
        """

        def submit(number: int) -> Finish:
            return call(same, number)

        self.rate(f"{prefix}functions", submit, is_same)
        self.p50(f"{prefix}function-p50", submit, is_same)
        for row in self.counts:
            kind, _, size = row.removeprefix(prefix).rpartition("-")
            if kind == "queued":
                self.rate(row, submit, is_same)
            elif kind == "result":
                self._results(row, call, int(size))

    def _results(self, row: str, call: Call, size: int) -> None:
        self.rate(row, lambda _: call(large, size), lambda _, value: len(value) == size)

    def rate(self, row: str, submit: Submit, check: Check) -> None:
        """Measure tasks a second: all are submitted, then all are awaited.

        Args:
            row: which; nothing is done if it's not wanted.
            submit: submits one.
            check: what each value must be.
        """
        self.rate_of(row, lambda count: run(submit, check, count))

    def rate_of(self, row: str, do: Callable[[int], object]) -> None:
        """Measure tasks a second; a tenth more, or 500, come before, unmeasured.

        Args:
            row: which; nothing is done if it's not wanted.
            do: runs so many tasks, and checks them.
        """
        if row not in self.counts:
            return
        count = self.counts[row]
        do(max(2 * WORKERS, min(count // 10, 500)))
        begun = time.perf_counter()
        do(count)
        self.answer(row, count / (time.perf_counter() - begun))

    def p50(self, row: str, submit: Submit, check: Check) -> None:
        """Measure the median time from submission to value, one task at a time; milliseconds.

        Args: as those of `rate`.
        """
        if row not in self.counts:
            return
        run(submit, check, 1)
        times = []
        for number in range(self.counts[row]):
            begun = time.perf_counter()
            value = submit(number)()
            times.append(time.perf_counter() - begun)
            refuse_wrong(number, value, check)
        self.answer(row, 1000 * statistics.median(times))


def refuse_wrong(number: int, value: Any, check: Check) -> None:
    """Raise a ValueError if a task has a wrong value."""
    if not check(number, value):
        raise ValueError(f"task {number} has the value {value!r}")


def run(submit: Submit, check: Check, count: int) -> None:
    """Run tasks, as many at a time as the contender can.

    Raises:
        ValueError: a task has a wrong value.
    """
    finishes = [submit(number) for number in range(count)]
    for number, finish in enumerate(finishes):
        refuse_wrong(number, finish(), check)
