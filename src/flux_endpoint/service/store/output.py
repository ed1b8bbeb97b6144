"""The printed output of tasks, as the database keeps it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa

from flux_endpoint.protocol.envelope import OUTPUT
from flux_endpoint.protocol.limits import MAX_OUTPUT
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import submissions, task_output, tasks

#: The most bytes before the kept ones that are counted.
_MOST_DROPPED = 2**62
#: Maximum number of tasks in a part of `in_groups`.
_GROUP_TASKS = 500
#: Bytes that are read of the end of a stream for its last line.
_LINE_BYTES = 300


@dataclass(frozen=True)
class TaskOutput:
    """The end of each stream of a task, and the number of bytes before it."""

    stdout: str
    stderr: str
    stdout_dropped: int = 0
    stderr_dropped: int = 0

    @classmethod
    def split(cls, details: dict[str, Any]) -> tuple[Self | None, dict[str, Any]]:
        """Return the output in a result's details, and the rest of these.

        Text beyond the limit is cut off at its beginning; what is not text is ignored.
        """
        names = {name for pair in OUTPUT for name in pair}
        if names.isdisjoint(details):
            return None, details
        values: list[Any] = []
        for text, dropped in OUTPUT:
            whole, before = details.get(text), details.get(dropped)
            given = whole if isinstance(whole, str) else ""
            kept = given[-MAX_OUTPUT:]
            cut = len(given[: len(given) - len(kept)].encode(errors="replace"))
            count = before if isinstance(before, int) and 0 <= before < _MOST_DROPPED else 0
            values.append((kept, count + cut))
        (out, out_dropped), (error, error_dropped) = values
        rest = {key: value for key, value in details.items() if key not in names}
        return cls(out, error, out_dropped, error_dropped), rest

    @property
    def length(self) -> int:
        """The characters of both streams."""
        return len(self.stdout) + len(self.stderr)

    @property
    def details(self) -> dict[str, Any]:
        """It as entries of a result's details, without those that say nothing."""
        return {name: value for name, value in vars(self).items() if value}


def add_output(
    connection: sa.Connection, outputs: Mapping[str, TaskOutput], replaced: Iterable[str] = ()
) -> None:
    """Store what tasks have printed.

    Args:
        connection: a transaction that writes.
        outputs: what they have printed, by their ids.
        replaced: tasks that may have some from an earlier result, which is deleted.
    """
    for part in chunks(replaced):
        connection.execute(sa.delete(task_output).where(task_output.c.task_id.in_(part)))
    if not outputs:
        return
    rows = [
        {
            "task_id": task_id,
            **vars(each),
            "stdout": each.stdout.encode(errors="backslashreplace"),
            "stderr": each.stderr.encode(errors="backslashreplace"),
        }
        for task_id, each in outputs.items()
    ]
    connection.execute(sa.insert(task_output), rows)


def output_of(connection: sa.Connection, task_ids: Iterable[str]) -> dict[str, TaskOutput]:
    """Return what tasks have printed, by their ids; those that have printed nothing are missing."""
    found: dict[str, TaskOutput] = {}
    for part in chunks(task_ids):
        query = sa.select(task_output).where(task_output.c.task_id.in_(part))
        for task_id, out, error, *dropped in connection.execute(query):
            found[task_id] = TaskOutput(out.decode(), error.decode(), *dropped)
    return found


def in_groups(
    connection: sa.Connection, owner_id: str, ids: Iterable[str], size: int, *, with_output: bool
) -> list[list[str]]:
    """Split a user's tasks among `ids` into parts of limited size.

    Args:
        connection: a transaction.
        owner_id: id of the user.
        ids: ids of tasks.
        size: maximum bytes of results in a part; a single larger result has its own part.
        with_output: whether what they have printed counts, too.

    Returns:
        The ids of the tasks in each part.
    """
    parts: list[list[str]] = []
    room = 0
    columns = [tasks.c.result]
    if with_output:
        columns += [task_output.c.stdout, task_output.c.stderr]
    lengths = [sa.func.coalesce(sa.func.length(column), 0) for column in columns]
    for chunk in chunks(ids):
        query = (
            sa.select(tasks.c.id, *lengths)
            .join_from(tasks, submissions)
            .where(tasks.c.id.in_(chunk), submissions.c.owner_id == owner_id)
        )
        if with_output:
            query = query.outerjoin(task_output, task_output.c.task_id == tasks.c.id)
        for task_id, *of_task in connection.execute(query):
            length = sum(of_task)
            if not parts or length > room or len(parts[-1]) == _GROUP_TASKS:
                parts.append([])
                room = size
            parts[-1].append(task_id)
            room -= length
    return parts


def last_lines(connection: sa.Connection, task_ids: Iterable[str]) -> dict[str, str]:
    """Return the last line that tasks have printed, by their ids: on standard output, if any."""
    found: dict[str, str] = {}
    columns = (task_output.c.stdout, task_output.c.stderr)
    for part in chunks(task_ids):
        ends = (last_bytes(column, _LINE_BYTES) for column in columns)
        query = sa.select(task_output.c.task_id, *ends).where(task_output.c.task_id.in_(part))
        for task_id, *streams in connection.execute(query):
            lines = (last_line(each) for each in streams)
            if line := next((each for each in lines if each), ""):
                found[task_id] = line
    return found


def last_bytes(column: sa.Column[Any], most: int) -> sa.ColumnElement[Any]:
    """Return an expression for the last bytes of a column, at most `most`."""
    length = sa.func.length(column)
    return sa.func.substr(column, sa.case((length > most, length - most + 1), else_=1))


def last_line(text: bytes | None) -> str:
    """Return the last line of a text that is not empty, without spaces around it."""
    lines = [line.strip() for line in (text or b"").decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")
