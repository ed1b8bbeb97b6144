"""The work of every contender, and its timing.

The programs in `contenders/` import this with different interpreters, so it uses only the standard
library.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The most functions that each contender may run at once.
WORKERS = 2
#: Timeout (s) for waiting.
PATIENCE = 120.0

#: Waits for a submitted task and returns its value.
Finish = Callable[[], Any]
#: Submits the task with a number.
Submit = Callable[[int], Finish]
#: Submits a call of one of the functions below.
Call = Callable[..., Finish]
#: Returns whether a value is correct for the task with a number.
Check = Callable[[int, Any], bool]


def typed(name: str, source: str) -> Any:
    """Return a function as if a user had typed it: it is serialized by value and needs no module.

    Args:
        name: name of the function.
        source: its definition.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace[name]


#: A function that returns its argument, so that each result can be checked.
same = typed("same", "def same(value):\n    return value\n")
#: A function whose result has a given size.
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
    """The order of a contender, and its answers.

    The order is the program's argument, a JSON object. `counts` has the number of tasks for each
    requested row; `answers` is the path of the file for the answers, one JSON object per line;
    `directory` is an empty working directory; `options` distinguishes this contender from others
    of the same program.
    """

    def __init__(self) -> None:
        order = json.loads(sys.argv[1])
        self.counts: dict[str, int] = order["counts"]
        self.directory = Path(order["directory"])
        self.options: dict[str, Any] = order["options"]
        self._answers = Path(order["answers"])

    def wants(self, *rows: str) -> bool:
        """Return whether one of these rows is requested."""
        return any(row in self.counts for row in rows)

    def answer(self, row: str, value: float) -> None:
        """Write a measured value to the file for the answers."""
        with self._answers.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, "value": value}) + "\n")

    def functions(self, call: Call, prefix: str = "") -> None:
        """Measure all requested rows of functions.

        A row's name may end with a number: the number of queued tasks, or the size (bytes) of each
        result.

        Args:
            call: submits a call of `same` or `large`.
            prefix: prefix of the rows' names.
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
        """Measure tasks per second: submit all tasks, then wait for all of them.

        Args:
            row: the row; nothing is done if it is not requested.
            submit: submits a task.
            check: checks a value.
        """
        self.rate_of(row, lambda count: run(submit, check, count))

    def rate_of(self, row: str, do: Callable[[int], object]) -> None:
        """Measure tasks per second, after a warm-up with a tenth of the tasks (at most 500).

        Args:
            row: the row; nothing is done if it is not requested.
            do: runs a number of tasks and checks their values.
        """
        if row not in self.counts:
            return
        count = self.counts[row]
        do(max(2 * WORKERS, min(count // 10, 500)))
        begun = time.perf_counter()
        do(count)
        self.answer(row, count / (time.perf_counter() - begun))

    def p50(self, row: str, submit: Submit, check: Check) -> None:
        """Measure the median time (ms) from submission to value, one task at a time.

        The arguments are those of `rate`.
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
    """Raise ValueError if a task has a wrong value."""
    if not check(number, value):
        raise ValueError(f"task {number} has the value {value!r}")


def run(submit: Submit, check: Check, count: int) -> None:
    """Run tasks, as many at once as the contender can.

    Args:
        submit: submits a task.
        check: checks a value.
        count: number of tasks.

    Raises:
        ValueError: a task has a wrong value.
    """
    finishes = [submit(number) for number in range(count)]
    for number, finish in enumerate(finishes):
        refuse_wrong(number, finish(), check)
