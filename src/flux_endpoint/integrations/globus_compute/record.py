"""The tasks that the engine has accepted, on disk.

The official endpoint acknowledges them to the broker at once, and forgets them with its process.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from pathlib import Path

from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.errors import EngineError

#: Seconds for which a result is kept after it was handed over: its publication takes a moment, and
#: nothing says when it was confirmed. One that is published twice does no harm.
KEPT = 30.0
#: The same when the endpoint stops in good order.
KEPT_AT_STOP = 5.0

_LAYOUT = 1
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY,
    function_id TEXT NOT NULL,
    resource_specification TEXT,
    result_serializers TEXT,
    buffer TEXT NOT NULL
);
CREATE TABLE results (task_id TEXT PRIMARY KEY, body BLOB NOT NULL, at REAL NOT NULL);
CREATE INDEX by_time ON results (at);
PRAGMA user_version = {_LAYOUT};
COMMIT;
"""


class TaskRecord:
    """Accepted tasks and fresh results; any thread may use it.

    It survives the end of the process, not that of the machine.

    Args:
        path: the database file, created if missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(
                path, isolation_level=None, timeout=10, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            (layout,) = self._database.execute("PRAGMA user_version").fetchone()
            if layout == 0:
                self._database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise EngineError(
                f"can't open the record of tasks {path}: {error}. If it is damaged, move it away: "
                "the tasks in it are then lost"
            ) from error
        if layout not in (0, _LAYOUT):
            raise EngineError(
                f"the record of tasks {path} has layout {layout}, this release reads {_LAYOUT}"
            )

    def accept(self, task: EngineTask) -> None:
        """Record a task.

        Raises:
            EngineError: it can't be; the task must not be acknowledged.
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
        """Put a task's result in its place.

        Raises:
            EngineError: it can't be.
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
        """Forget results that are older than `age` seconds."""
        self._write([("DELETE FROM results WHERE at < ?", (time.time() - age,))])

    def unfinished(self) -> list[EngineTask]:
        """Return the tasks that have not ended, oldest first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT task_id, function_id, buffer, resource_specification, result_serializers"
                " FROM tasks ORDER BY rowid"
            ).fetchall()
        return [
            EngineTask(task_id, function_id, buffer, json.loads(resources), json.loads(serializers))
            for task_id, function_id, buffer, resources, serializers in rows
        ]

    def result(self, task_id: str) -> bytes | None:
        """Return the result of a task that has just ended, `None` of any other.

        Raises:
            EngineError: it can't be read.
        """
        with self._lock:
            try:
                row = self._database.execute(
                    "SELECT body FROM results WHERE task_id = ?", (task_id,)
                ).fetchone()
            except sqlite3.Error as error:
                raise EngineError(
                    f"can't read the record of tasks {self._path}: {error}"
                ) from error
        return None if row is None else bytes(row[0])

    def fresh_results(self) -> list[EngineResult]:
        """Return the results that may not have been published, oldest first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT task_id, body FROM results ORDER BY at"
            ).fetchall()
        return [EngineResult(task_id, body) for task_id, body in rows]

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def _write(self, statements: list[tuple[str, tuple[object, ...]]]) -> None:
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                for statement, values in statements:
                    self._database.execute(statement, values)
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise EngineError(
                    f"can't write the record of tasks {self._path}: {error}"
                ) from error
