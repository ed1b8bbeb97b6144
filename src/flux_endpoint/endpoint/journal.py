"""The agent's accepted and unfinished work on disk: `journal.db`.

A task is in `tasks` from its acceptance to its end; its result is in `results` from then until the
broker has confirmed it; its id is then in `done` for a while, to recognize a late redelivery.
Whatever happens to the process, each accepted task is in exactly one of the three. While a task
with options is in `tasks`, `run_options` has these, and its failed attempts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from flux_endpoint.endpoint.retries import Attempts
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.logs import event
from flux_endpoint.protocol.messages import Result, unpack
from flux_endpoint.protocol.run_options import parse_run_options
from flux_endpoint.sqlite_file import Layout, RecordFile, Row, connect, record_errors

log = logging.getLogger(__name__)

#: Version of the schema, stored in `PRAGMA user_version`.
SCHEMA_VERSION = 1
#: Ids in `done`: at most this many, and none older than this many seconds.
MAX_DONE = 100_000
KEEP_DONE = 7 * 86_400.0
#: Number of confirmations between two checks of the size of `done`.
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
CREATE TABLE beginnings (at REAL NOT NULL);
INSERT INTO beginnings VALUES (strftime('%s', 'now'));
"""

_RUN_OPTIONS = """
CREATE TABLE run_options (
    task_id TEXT PRIMARY KEY,
    options TEXT NOT NULL,
    failures TEXT NOT NULL,
    due REAL,
    is_last INTEGER NOT NULL
)
"""
#: Of tasks that are here, or on their way; NULL: their usual one.
_URGENCIES = """
CREATE TABLE urgencies (
    task_id TEXT PRIMARY KEY,
    urgency INTEGER,
    at REAL NOT NULL
)
"""
_SELECT_TASKS = """
SELECT tasks.task_id, function_id, resource_specification, result_serializers, buffer, attach,
    options, urgency
FROM tasks LEFT JOIN run_options USING (task_id) LEFT JOIN urgencies USING (task_id)
"""


def has_open(path: Path, task_id: str) -> bool:
    """Return whether a journal has an unfinished task; the journal's agent may be running.

    Raises:
        RecordError: it can't be read.
    """
    with (
        record_errors("read", path, LAYOUT),
        closing(connect(path, read_only=True)) as database,
    ):
        query = "SELECT 1 FROM tasks WHERE task_id = ?"
        return database.execute(query, (task_id,)).fetchone() is not None


def open_counts(path: Path) -> tuple[int, int]:
    """Return the numbers of unfinished tasks, and of results that the broker has not confirmed.

    Raises:
        RecordError: the journal can't be read.
    """
    with (
        record_errors("read", path, LAYOUT),
        closing(connect(path, read_only=True)) as database,
    ):
        query = "SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM results)"
        tasks, results = database.execute(query).fetchone()
        return tasks, results


class Journal(RecordFile):
    """The agent's record; belongs to the thread that opens it.

    Args:
        path: the database file; created if it is missing, and rebuilt from its readable rows if it
            is damaged.
        max_done: how many ids of finished tasks are remembered.
        keep_done: for how many seconds they are; infinity: as long as there are not more.

    Raises:
        RecordError: it can't be opened.
    """

    def __init__(
        self, path: Path, *, max_done: int = MAX_DONE, keep_done: float = KEEP_DONE
    ) -> None:
        super().__init__(path, LAYOUT)
        self._max_done = max_done
        self._keep_done = keep_done
        #: The first confirmation after a start removes what has become too old.
        self._confirmed_since_prune = PRUNE_EVERY
        if self.is_new:
            event(log, logging.INFO, "a new journal begins", path=path)
        with self._record_errors("read"):
            # The journal of an earlier release lacks this table: it was never lost.
            self._database.execute("CREATE TABLE IF NOT EXISTS beginnings (at REAL NOT NULL)")
            # Numbers continue after the highest one, although old rows are deleted.
            (self._number,) = self._database.execute(
                "SELECT coalesce(max(number), 0) FROM done"
            ).fetchone()
            # A repair may have lost their tasks.
            self._database.execute(
                "DELETE FROM run_options WHERE task_id NOT IN (SELECT task_id FROM tasks)"
            )
            #: Tasks that have options.
            self._with_options = {each for (each,) in self._rows("SELECT task_id FROM run_options")}
            self._database.execute(
                "DELETE FROM urgencies WHERE at < ? AND task_id NOT IN (SELECT task_id FROM tasks)",
                (time.time() - keep_done,),
            )
            #: Urgencies that were asked for, by task; `None`: the task's usual one.
            self.urgencies: dict[str, int | None] = {
                str(task_id): None if urgency is None else int(str(urgency))
                for task_id, urgency in self._rows("SELECT task_id, urgency FROM urgencies")
            }

    @property
    def lacks_earlier(self) -> bool:
        """Whether an earlier journal may have had tasks that this one lacks, and nobody said so."""
        return bool(self._rows("SELECT 1 FROM beginnings"))

    def accounted(self) -> None:
        """Record that all tasks of an earlier journal that are missing here have an end."""
        self._database.execute("DELETE FROM beginnings")

    def held(self) -> set[str]:
        """Return the ids of all tasks that are here: without a result, or with one."""
        rows = self._rows("SELECT task_id FROM tasks UNION SELECT task_id FROM results")
        return {task_id for (task_id,) in rows}

    @contextmanager
    def batch(self, *, durable: bool = True) -> Iterator[None]:
        """Perform the enclosed operations in one transaction.

        Args:
            durable: whether it must survive a power failure at once, and not only the end of the
                process. Otherwise `sync` makes it survive that: acceptances and results need it
                before they are acknowledged or settled; confirmations, whose loss costs one
                duplicate, do not.

        Raises:
            RecordError: nothing of the batch was written (for example, the disk is full).
        """
        with self._record_errors("write"):
            self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        with self._transaction():
            yield

    def accept(self, tasks: Iterable[EngineTask]) -> None:
        """Record tasks; tasks that are already recorded stay unchanged."""
        now = time.time()
        tasks = list(tasks)
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
        with_options = [task for task in tasks if task.options is not None]
        self._with_options.update(task.task_id for task in with_options)
        self._database.executemany(
            "INSERT OR IGNORE INTO run_options VALUES (?, ?, '[]', NULL, 0)",
            ((each.task_id, _to_json(_options(each))) for each in with_options),
        )

    def attempted(self, attempts: Iterable[Attempts]) -> None:
        """Record failed attempts at tasks, and when the next ones are due."""
        self._database.executemany(
            "UPDATE run_options SET failures = ?, due = ?, is_last = ? WHERE task_id = ?",
            (
                (_to_json(each.failures), each.due, int(each.is_last), each.task_id)
                for each in attempts
            ),
        )

    def set_urgencies(self, urgencies: Mapping[str, int | None]) -> None:
        """Record urgencies that were asked for, also of tasks that are not here yet."""
        now = time.time()
        self.urgencies.update(urgencies)
        self._database.executemany(
            "INSERT OR REPLACE INTO urgencies VALUES (?, ?, ?)",
            ((task_id, urgency, now) for task_id, urgency in urgencies.items()),
        )

    def attempts(self) -> list[Attempts]:
        """Return the attempts at all unfinished tasks that have options."""
        query = "SELECT * FROM run_options"
        return [_attempts(row) for row in self._rows(query)]

    def finish(self, results: Sequence[EngineResult]) -> None:
        """Replace tasks by their results."""
        self._database.executemany(
            "DELETE FROM tasks WHERE task_id = ?", ((result.task_id,) for result in results)
        )
        self._database.executemany(
            "INSERT OR REPLACE INTO results VALUES (?, ?)",
            ((result.task_id, result.body) for result in results),
        )
        ended = self._with_options.intersection(result.task_id for result in results)
        self._database.executemany(
            "DELETE FROM run_options WHERE task_id = ?", ((task_id,) for task_id in ended)
        )
        if self.urgencies:
            self._database.executemany(
                "DELETE FROM urgencies WHERE task_id = ?", ((result.task_id,) for result in results)
            )

    def confirmed(self, task_ids: Sequence[str]) -> None:
        """Remove results that the broker has confirmed; keep only their ids."""
        now = time.time()
        self._with_options.difference_update(task_ids)
        for task_id in task_ids if self.urgencies else ():
            self.urgencies.pop(task_id, None)
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
                (self._number - self._max_done, now - self._keep_done),
            )

    def done(self, task_ids: Sequence[str]) -> set[str]:
        """Return those of `task_ids` whose result was confirmed."""
        query = "SELECT task_id FROM done WHERE task_id IN (SELECT value FROM json_each(?))"
        return {task_id for (task_id,) in self._rows(query, json.dumps(task_ids))}

    def pending(self) -> Iterator[EngineTask]:
        """Yield the unfinished tasks in the order of their arrival."""
        with self._record_errors("read"):
            for row in self._database.execute(f"{_SELECT_TASKS} ORDER BY tasks.rowid"):
                yield _task(row)

    def task(self, task_id: str) -> EngineTask:
        """Return an unfinished task.

        Raises:
            KeyError: there is none.
        """
        for row in self._rows(f"{_SELECT_TASKS} WHERE tasks.task_id = ?", task_id):
            return _task(row)
        raise KeyError(task_id)

    def unpublished(self) -> list[str]:
        """Return the ids of the results that the broker has not confirmed, oldest first."""
        return [task_id for (task_id,) in self._rows("SELECT task_id FROM results ORDER BY rowid")]

    def result(self, task_id: str) -> bytes:
        """Return the unconfirmed result of a task.

        Raises:
            KeyError: there is none.
        """
        for (body,) in self._rows("SELECT body FROM results WHERE task_id = ?", task_id):
            return bytes(body)
        raise KeyError(task_id)


def _to_json(value: object) -> str | None:
    return None if value is None else json.dumps(value)


def _task(columns: Row) -> EngineTask:
    task_id, function_id, resources, serializers, buffer, attach, options, urgency = columns
    named: list[Any] = [
        None if each is None else json.loads(each)  # type: ignore[arg-type]  # written as JSON
        for each in (resources, serializers, attach)
    ]
    task = EngineTask(str(task_id), str(function_id), str(buffer), *named)
    if urgency is not None:
        task = replace(task, urgency=int(str(urgency)))
    if options is None:
        return task
    return replace(task, options=parse_run_options(json.loads(str(options))))


def _options(task: EngineTask) -> dict[str, Any]:
    return {} if task.options is None else task.options.as_json()


def _attempts(row: Row) -> Attempts:
    task_id, options, failures, due, is_last = row
    return Attempts(
        str(task_id),
        parse_run_options(json.loads(str(options))),
        tuple(json.loads(str(failures))),
        None if due is None else float(due),  # type: ignore[arg-type]  # a number
        bool(is_last),
    )


# Checks of a row's values; ValueError says what is wrong with it.


def _check_task(row: Row) -> None:
    try:
        *columns, received = row
        task = _task([*columns, None, None])
        task.buffer.encode()
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    _check_id(task.task_id)
    _check_id(task.function_id)
    if not (
        isinstance(task.resource_specification, dict | None)
        and isinstance(task.result_serializers, list | None)
        and isinstance(task.attach, int | None)
        and isinstance(columns[4], str)
        and isinstance(received, float)
    ):
        raise ValueError("a column is of another kind")  # noqa: TRY004 - it is the value of a row


def _check_options(row: Row) -> None:
    try:
        attempts = _attempts(row)
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    _check_id(attempts.task_id)
    if not all(isinstance(each, str) for each in attempts.failures):
        raise ValueError("a column is of another kind")


def _check_result(row: Row) -> None:
    task_id, body = row
    _check_id(task_id)
    message = unpack(body) if isinstance(body, bytes) else None
    if not isinstance(message, Result) or str(message.task_id) != task_id:
        raise ValueError("it is not the result of its task")


def _check_done(row: Row) -> None:
    _, task_id, at = row
    _check_id(task_id)
    if not isinstance(at, float):
        raise ValueError("a column is of another kind")  # noqa: TRY004 - it is the value of a row


def _check_urgency(row: Row) -> None:
    task_id, urgency, at = row
    _check_id(task_id)
    if not (urgency is None or isinstance(urgency, int)) or not isinstance(at, float):
        raise ValueError("a column is of another kind")


def _check_id(value: object) -> None:
    if not isinstance(value, str) or str(UUID(value)) != value:
        raise ValueError(f"{str(value)[:100]!r} is no task's or function's id")


#: The layout of the file, and the checks of its rows.
LAYOUT = Layout(
    "journal",
    SCHEMA_VERSION,
    _SCHEMA,
    {
        "tasks": _check_task,
        "results": _check_result,
        "done": _check_done,
        "run_options": _check_options,
        "urgencies": _check_urgency,
    },
    "DELETE FROM tasks WHERE task_id IN"
    " (SELECT task_id FROM results UNION ALL SELECT task_id FROM done)",
    {"run_options": _RUN_OPTIONS, "urgencies": _URGENCIES},
)
