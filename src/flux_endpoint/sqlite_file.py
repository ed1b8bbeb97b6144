"""Durable records in an SQLite file: checks the file, and repairs a damaged one.

A file is damaged if a page or a row is invalid. The damaged file is kept under another name, and
all readable rows are copied into a new file. The repair is logged, so that no loss goes unnoticed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flux_endpoint.errors import RecordError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

# Size (bytes) of a new file's pages. A commit writes each page of a payload to the log separately:
# with SQLite's 4 KiB, a MiB takes twice the CPU time, and a small commit as much.
_PAGE = 16 << 10
# The most unused pages that a file may have, and that are returned to the disk at once.
_UNUSED_PAGES = 250
# Largest size (bytes) on disk of an empty write-ahead log.
_LOG_BYTES = 16 * 2**20
# Size (bytes) of the log from which a commit copies it into the file and synchronizes that. By
# default 4 MiB: after three tasks of 1 MiB, whose rows are deleted soon after.
_LOG_COPIED = 16 * 2**20
#: Time (s) to wait for another process that writes.
_BUSY_TIMEOUT = 10
#: Error codes of SQLite that mean damage. `SQLITE_ERROR` (e.g. "no such table") is one of them,
#: since our statements are correct.
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})

Row = Sequence[object]


@dataclass(frozen=True)
class Layout:
    """The layout of a record file.

    Attributes:
        noun: name of the file in messages, e.g. "journal".
        version: version of the layout, stored in `PRAGMA user_version`.
        schema: the statements that create the tables.
        checks: by table, a function that raises `ValueError` for an invalid row, given all its
            columns. A repair copies the tables in this order.
        mend: a statement that removes inconsistent rows after a repair.
        added: tables of `checks` that files of earlier releases lack, and the statements that
            create them.
    """

    noun: str
    version: int
    schema: str
    checks: Mapping[str, Callable[[Row], None]]
    mend: str
    added: Mapping[str, str] = field(default_factory=dict)


@dataclass
class FileCondition:
    """The condition of a record file.

    Attributes:
        is_new: whether the file did not exist or was empty.
        damage: description of the first fault; empty: there is none.
        rows: number of readable rows by table.
        aside: new path of a damaged file.
    """

    is_new: bool = False
    damage: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    aside: Path | None = None


class RecordFile:
    """An open record file. A missing file is created; a damaged one is repaired.

    A repair is logged as an error.

    Its connection is in autocommit mode and WAL mode, and works in any thread.

    Args:
        path: the file.
        layout: its layout.

    Raises:
        RecordError: it can't be read or written, or was written by another release.

    Attributes:
        is_new: whether the file did not exist or was empty.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        try:
            _finish_repair(path)
            found = _examined(path, layout) if path.exists() else FileCondition(is_new=True)
            if found.damage:
                found.aside = _repair(path, layout)
            self._database = connect(path)
            if found.is_new:
                _create(self._database, layout)
            for name, create in layout.added.items():
                if not _has_table(self._database, name):
                    self._database.execute(create)
        except (sqlite3.Error, OSError) as error:
            raise RecordError(f"can't open the {layout.noun} {path}: {error}") from error
        self.is_new = found.is_new
        #: Descriptor of the write-ahead log, once `sync` has opened it.
        self._log = -1
        if found.damage:
            what = "was damaged; what can be read was kept, and the damaged file was renamed"
            text = f"the {layout.noun} {what}"
            rows = found.rows
            event(log, logging.ERROR, text, damage=found.damage, aside=found.aside, **rows)

    def give_back(self) -> None:
        """Return some of the file's unused space to the disk, if much of the file is unused.

        Must not be called within a transaction. A file created by an earlier release keeps its
        size.

        Raises:
            RecordError: the file can't be written.
        """
        with self._record_errors("write"):
            pages, free = (
                self._database.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count")
            )
            if free >= max(_UNUSED_PAGES, pages // 2):
                # `execute` would stop after the first page.
                self._database.executescript(f"PRAGMA incremental_vacuum({_UNUSED_PAGES})")

    def sync(self) -> None:
        """Make all committed transactions survive a power failure.

        A commit with `PRAGMA synchronous = NORMAL` only survives the end of this process. No lock
        of SQLite's is on the log, so another descriptor of it may be closed (fcntl(2)).

        Raises:
            RecordError: the log can't be synchronized.
        """
        path = f"{os.path.realpath(self._path)}-wal"
        try:
            if self._log < 0:
                self._log = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.fdatasync(self._log)
        except FileNotFoundError:
            pass  # this file system permits no log: then each commit is synchronized
        except OSError as error:
            text = f"can't write the {self._layout.noun} {self._path}: {error.strerror}"
            raise RecordError(text) from error

    def close(self) -> None:
        """Close the file. Committed data is safe even without this."""
        self._database.close()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run the statements in the `with` block in one transaction.

        Raises:
            RecordError: it failed (e.g. the disk is full); nothing was written.
        """
        with self._record_errors("write"):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # the first error must be reported
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return all rows of a query.

        Args:
            query: the statement.
            values: values for its placeholders.

        Raises:
            RecordError: the file can't be read.
        """
        with self._record_errors("read"):
            return self._database.execute(query, values).fetchall()

    def _record_errors(self, verb: str) -> contextlib.AbstractContextManager[None]:
        return record_errors(verb, self._path, self._layout)


def examine(path: Path, layout: Layout) -> FileCondition:
    """Check a record file without changing it. Another process may be using it.

    Args:
        path: the file.
        layout: its layout.

    Raises:
        RecordError: it can't be read, or was written by another release.
    """
    try:
        return _examined(path, layout)
    except (sqlite3.Error, OSError) as error:
        raise RecordError(f"can't read the {layout.noun} {path}: {error}") from error


@contextlib.contextmanager
def record_errors(verb: str, path: Path, layout: Layout) -> Iterator[None]:
    """Raise `RecordError` instead of an error of SQLite.

    Args:
        verb: "read" or "write", for the message.
        path: the file.
        layout: its layout.

    Raises:
        RecordError: SQLite failed: "can't `verb` the journal /path: ...".
    """
    try:
        yield
    except sqlite3.Error as error:
        hint = ""
        if _is_damage(error):
            hint = ". It is damaged: the next start keeps what can be read of it"
        text = f"can't {verb} the {layout.noun} {path}: {error}{hint}"
        raise RecordError(text, damaged=_is_damage(error)) from error


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Connect to a record file without checking it.

    Args:
        path: the file.
        read_only: whether to refuse changes; then the file must exist.

    Raises:
        sqlite3.Error: it can't be opened.
    """
    uri = f"file:{quote(str(path))}{'?mode=ro' if read_only else ''}"
    database = sqlite3.connect(
        uri, uri=True, isolation_level=None, timeout=_BUSY_TIMEOUT, check_same_thread=False
    )
    if not read_only:
        database.execute(f"PRAGMA page_size = {_PAGE}")  # only for new files, as is the next one
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # see `give_back`
        database.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        (page,) = database.execute("PRAGMA page_size").fetchone()
        database.execute(f"PRAGMA wal_autocheckpoint = {_LOG_COPIED // page}")
        # Distributions differ in the default. On, a deleted row is written once more, as zeros.
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("PRAGMA journal_mode = WAL")
    return database


def _create(database: sqlite3.Connection, layout: Layout) -> None:
    schema = ";".join((layout.schema, *layout.added.values()))
    database.executescript(
        f"BEGIN IMMEDIATE; {schema}; PRAGMA user_version = {layout.version}; COMMIT;"
    )


def _has_table(database: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return database.execute(query, (name,)).fetchone() is not None


def _examined(path: Path, layout: Layout) -> FileCondition:
    condition = FileCondition()
    with contextlib.closing(connect(path, read_only=True)) as database:
        database.text_factory = _text
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not version and not tables:
                return FileCondition(is_new=True)
            if version not in {0, layout.version}:
                raise RecordError(
                    f"the {layout.noun} {path} has layout {version}, this release reads "
                    f"{layout.version}: use the release that wrote it to finish its tasks"
                )
            (answer,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            condition.damage = "" if answer == "ok" else str(answer)
            if not version:
                condition.damage = condition.damage or "its layout is not given"
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
            condition.damage = str(error)
        found: list[str] = []
        for table in layout.checks:
            rows = _Reader(database, layout, found.append).rows(table)
            condition.rows[table] = sum(1 for _ in rows)
        condition.damage = condition.damage or next(iter(found), "")
    return condition


class _Reader:
    """Reads all readable rows of a file, and reports each fault.

    Args:
        database: connection to the file.
        layout: its layout.
        on_damage: called with the description of each fault.
    """

    def __init__(
        self, database: sqlite3.Connection, layout: Layout, on_damage: Callable[[str], None]
    ) -> None:
        self._database = database
        self._layout = layout
        self._on_damage = on_damage

    def rows(self, table: str) -> Iterator[Row]:
        """Yield the readable rows of a table in order."""
        last = -1
        try:
            if table in self._layout.added and not _has_table(self._database, table):
                return
            for rowid, row in self._selected(table, last, "ASC"):
                last = rowid
                yield row
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
            self._on_damage(f"{table}: {error}")
            # Read the rows after the unreadable page backwards, from the end of the table.
            beyond: list[Row] = []
            try:
                for _, row in self._selected(table, last, "DESC"):
                    beyond.append(row)
            except sqlite3.Error as other:
                if not _is_damage(other):
                    raise
            yield from reversed(beyond)

    def _selected(self, table: str, after: int, order: str) -> Iterator[tuple[int, Row]]:
        query = f"SELECT rowid, * FROM {table} WHERE rowid > ? ORDER BY rowid {order}"  # noqa: S608
        for rowid, *row in self._database.execute(query, (after,)):
            try:
                self._layout.checks[table](row)
            except ValueError as error:
                self._on_damage(f"row {rowid} of {table}: {error}")
            else:
                yield rowid, row


def _repair(path: Path, layout: Layout) -> Path:
    """Copy the readable rows into a new file, rename the damaged one, and return its new path.

    If this is interrupted, `path` is still the damaged file, or the new one, or an empty file that
    `_finish_repair` replaces with the new one.
    """
    fresh = _fresh(path)
    fresh.unlink(missing_ok=True)
    with (
        contextlib.closing(connect(path, read_only=True)) as damaged,
        contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as database,
    ):
        damaged.text_factory = _text
        _create(database, layout)
        database.execute("BEGIN")
        for table in layout.checks:
            for row in _Reader(damaged, layout, lambda _: None).rows(table):
                places = ", ".join("?" * len(row))
                database.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", row)  # noqa: S608
        database.execute(layout.mend)
        database.execute("COMMIT")
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            os.link(f"{path}{suffix}", f"{aside}{suffix}")
    partial = path.with_name(f"{path.name}.empty")
    partial.touch(mode=0o600)
    partial.replace(path)
    _finish_repair(path)
    return aside


def _finish_repair(path: Path) -> None:
    """Replace the empty file at `path` with the new one; the damaged file is renamed already."""
    fresh = _fresh(path)
    if fresh.exists() and path.exists() and not path.stat().st_size:
        # SQLite would apply the write-ahead log of the damaged file to the new one.
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        fresh.replace(path)


def _fresh(path: Path) -> Path:
    return path.with_name(f"{path.name}.repaired")


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _is_damage(error: sqlite3.Error) -> bool:
    # The low byte is the primary code. Errors of the Python module itself have no code.
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGE
