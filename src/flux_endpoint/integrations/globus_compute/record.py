"""The engine's accepted tasks on disk.

The official endpoint acknowledges tasks to the broker at once, and loses them with its process.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.sqlite_file import Layout, RecordFile, Row

#: Seconds for which a result is kept after it was handed over: publishing it takes a moment, and
#: its confirmation is not reported. Publishing a result twice does no harm.
KEPT = 30.0
#: The same after an orderly stop of the endpoint.
KEPT_AT_STOP = 5.0

_SCHEMA = """
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY,
    function_id TEXT NOT NULL,
    resource_specification TEXT,
    result_serializers TEXT,
    buffer TEXT NOT NULL
);
CREATE TABLE results (task_id TEXT PRIMARY KEY, body BLOB NOT NULL, at REAL NOT NULL);
CREATE INDEX by_time ON results (at)
"""


class PluginTaskRecord(RecordFile):
    """Accepted tasks and recent results; for any thread.

    It survives the end of the process, but not a crash of the machine.

    Args:
        path: the database file; created if it is missing, and rebuilt from its readable rows if it
            is damaged.

    Raises:
        RecordError: it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, LAYOUT)
        self._lock = threading.Lock()
        self._database.execute("PRAGMA synchronous = NORMAL")

    def accept(self, task: EngineTask) -> None:
        """Record a task.

        Raises:
            RecordError: it can't be recorded; the task must not be acknowledged.
        """
        row = (
            task.task_id,
            task.function_id,
            json.dumps(task.resource_specification),
            json.dumps(task.result_serializers),
            task.buffer,
        )
        self._write([("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?)", row)])

    def finish(self, result: EngineResult) -> None:
        """Replace a task by its result.

        Raises:
            RecordError: it can't be recorded.
        """
        now = time.time()
        self._write(
            [
                ("DELETE FROM tasks WHERE task_id = ?", (result.task_id,)),
                ("DELETE FROM results WHERE at < ?", (now - KEPT,)),
                (
                    "INSERT OR REPLACE INTO results VALUES (?, ?, ?)",
                    (result.task_id, result.body, now),
                ),
            ]
        )

    def forget(self, age: float) -> None:
        """Remove results that are older than `age` seconds."""
        self._write([("DELETE FROM results WHERE at < ?", (time.time() - age,))])

    def unfinished(self) -> list[EngineTask]:
        """Return the unfinished tasks, oldest first.

        Raises:
            RecordError: they can't be read.
        """
        with self._lock:
            rows = self._rows(
                "SELECT task_id, function_id, resource_specification, result_serializers, buffer"
                " FROM tasks ORDER BY rowid"
            )
        return [_task(row) for row in rows]

    def result(self, task_id: str) -> bytes | None:
        """Return the result of a task that has just ended, or `None`.

        Raises:
            RecordError: it can't be read.
        """
        with self._lock:
            rows = self._rows("SELECT body FROM results WHERE task_id = ?", task_id)
        return bytes(rows[0][0]) if rows else None

    def fresh_results(self) -> list[EngineResult]:
        """Return the results that may not have been published, oldest first.

        Raises:
            RecordError: they can't be read.
        """
        with self._lock:
            rows = self._rows("SELECT task_id, body FROM results ORDER BY at")
        return [EngineResult(task_id, body) for task_id, body in rows]

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            super().close()

    def _write(self, statements: list[tuple[str, tuple[object, ...]]]) -> None:
        with self._lock, self._transaction():
            for statement, values in statements:
                self._database.execute(statement, values)


def _task(row: Row) -> EngineTask:
    task_id, function_id, resources, serializers, buffer = row
    return EngineTask(
        str(task_id),
        str(function_id),
        str(buffer),
        json.loads(str(resources)),
        json.loads(str(serializers)),
    )


# Checks of a row's values; ValueError says what is wrong with it.


def _check_task(row: Row) -> None:
    try:
        task = _task(row)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    task.buffer.encode()
    if not (
        isinstance(task.resource_specification, dict | None)
        and isinstance(task.result_serializers, list | None)
        and all(isinstance(row[place], str) for place in (0, 1, 4))
    ):
        raise ValueError("a column is of another kind")


def _check_result(row: Row) -> None:
    task_id, body, at = row
    if not (isinstance(task_id, str) and isinstance(body, bytes) and isinstance(at, float)):
        raise ValueError("a column is of another kind")  # noqa: TRY004 - it is the value of a row


#: The layout of the file, and the checks of its rows.
LAYOUT = Layout(
    "record of tasks",
    1,
    _SCHEMA,
    {"tasks": _check_task, "results": _check_result},
    "DELETE FROM tasks WHERE task_id IN (SELECT task_id FROM results)",
)
