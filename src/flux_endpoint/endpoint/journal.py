"""What the agent has accepted and not yet handed on, on disk: `journal.db`.

A task is in `tasks` from its acceptance to its end, its result in `results` from there until the
broker has confirmed it, and its id then in `done` for a while, so that a late redelivery is known.
Whatever happens to the process, each accepted task is in exactly one of the three.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.errors import FluxEndpointError

#: Layout of the tables, kept in `PRAGMA user_version`.
SCHEMA_VERSION = 1
#: Ids in `done`: at most this many, and none older than this many seconds.
MAX_DONE = 100_000
MAX_DONE_AGE = 7 * 86_400.0
#: Confirmations between two looks at whether `done` grew too large.
PRUNE_EVERY = 10_000

_SCHEMA = """
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY,
    function_id TEXT NOT NULL,
    resource_specification TEXT,
    result_serializers TEXT,
    buffer TEXT NOT NULL,
    attach TEXT,
    received REAL NOT NULL
);
CREATE TABLE results (
    task_id TEXT PRIMARY KEY,
    body BLOB NOT NULL
);
CREATE TABLE done (
    number INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE,
    at REAL NOT NULL
);
"""


class Journal:
    """The agent's record; belongs to the thread that opens it.

    Args:
        path: the database file, created if missing.
        max_done: how many finished ids are remembered.
    """

    def __init__(self, path: Path, *, max_done: int = MAX_DONE) -> None:
        self._path = path
        self._max_done = max_done
        self._confirmed_since_prune = 0
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=10)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._prepare()
        except sqlite3.Error as error:
            raise FluxEndpointError(
                f"can't open the journal {path}: {error}. If it is damaged, move it away: the "
                "tasks in it are then lost"
            ) from error

    def _prepare(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._database.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise FluxEndpointError(
                f"the journal {self._path} has layout {version}, this release reads "
                f"{SCHEMA_VERSION}: use the release that wrote it to finish its tasks"
            )
        # Numbers go on where they stopped, though old rows are deleted.
        (self._number,) = self._database.execute(
            "SELECT coalesce(max(number), 0) FROM done"
        ).fetchone()

    @contextmanager
    def batch(self, *, durable: bool = True) -> Iterator[None]:
        """Make what is done inside one transaction.

        Args:
            durable: whether it must survive a power failure and not only the end of the process. A
                synchronized commit costs 0.2 ms on a local disk, another 0.01 ms; so acceptance
                and results are, confirmations (whose loss costs one duplicate) are not.

        Raises:
            FluxEndpointError: nothing of the batch is in the journal (e.g. the disk is full).
        """
        execute = self._database.execute
        try:
            execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._database.in_transaction:
                    execute("ROLLBACK")
                raise
            execute("COMMIT")
        except sqlite3.Error as error:
            if self._database.in_transaction:
                execute("ROLLBACK")
            raise FluxEndpointError(f"can't write the journal {self._path}: {error}") from error

    def accept(self, tasks: Iterable[EngineTask]) -> None:
        """Record tasks; one that is recorded already stays as it is."""
        now = time.time()
        self._database.executemany(
            "INSERT OR IGNORE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    task.task_id,
                    task.function_id,
                    _to_json(task.resource_specification),
                    _to_json(task.result_serializers),
                    task.buffer,
                    _to_json(task.attach),
                    now,
                )
                for task in tasks
            ),
        )

    def finish(self, results: Sequence[EngineResult]) -> None:
        """Put results in the place of their tasks."""
        self._database.executemany(
            "DELETE FROM tasks WHERE task_id = ?", ((result.task_id,) for result in results)
        )
        self._database.executemany(
            "INSERT OR REPLACE INTO results VALUES (?, ?)",
            ((result.task_id, result.body) for result in results),
        )

    def confirmed(self, task_ids: Sequence[str]) -> None:
        """Forget results that the broker has; remember only their ids."""
        now = time.time()
        self._database.executemany(
            "DELETE FROM results WHERE task_id = ?", ((task_id,) for task_id in task_ids)
        )
        self._database.executemany(
            "INSERT OR IGNORE INTO done VALUES (?, ?, ?)",
            ((self._number + n, task_id, now) for n, task_id in enumerate(task_ids, start=1)),
        )
        self._number += len(task_ids)
        self._confirmed_since_prune += len(task_ids)
        if self._confirmed_since_prune >= min(PRUNE_EVERY, self._max_done):
            self._confirmed_since_prune = 0
            self._database.execute(
                "DELETE FROM done WHERE number <= ?"
                " OR number <= (SELECT max(number) FROM done WHERE at < ?)",
                (self._number - self._max_done, now - MAX_DONE_AGE),
            )

    def done(self, task_ids: Sequence[str]) -> set[str]:
        """Return those of `task_ids` whose result was confirmed."""
        rows = self._database.execute(
            "SELECT task_id FROM done WHERE task_id IN (SELECT value FROM json_each(?))",
            (json.dumps(task_ids),),
        )
        return {task_id for (task_id,) in rows}

    def pending(self) -> Iterator[EngineTask]:
        """Yield the tasks that have not ended, in the order in which they came."""
        rows = self._database.execute(
            "SELECT task_id, function_id, buffer, resource_specification, result_serializers,"
            " attach FROM tasks ORDER BY rowid"
        )
        for task_id, function_id, buffer, resources, serializers, attach in rows:
            yield EngineTask(
                task_id,
                function_id,
                buffer,
                json.loads(resources) if resources else None,
                json.loads(serializers) if serializers else None,
                json.loads(attach) if attach else None,
            )

    def unpublished(self) -> list[str]:
        """Return the ids of the results that the broker has not confirmed, oldest first."""
        rows = self._database.execute("SELECT task_id FROM results ORDER BY rowid")
        return [task_id for (task_id,) in rows]

    def result(self, task_id: str) -> bytes:
        """Return the unconfirmed result of a task.

        Raises:
            KeyError: there is none.
        """
        row = self._database.execute(
            "SELECT body FROM results WHERE task_id = ?", (task_id,)
        ).fetchone()
        if row is None:
            raise KeyError(task_id)
        body: bytes = row[0]
        return body

    def close(self) -> None:
        """Close the database; what was committed is safe with or without this."""
        self._database.close()


def _to_json(value: object) -> str | None:
    return None if value is None else json.dumps(value)
