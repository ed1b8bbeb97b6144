"""One database: SQLite by default, PostgreSQL by URL. Read and write transactions, migrations."""

import fcntl
import functools
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DatabaseError

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.extras import install_command

#: Seconds to wait for another process that writes to the same SQLite file.
SQLITE_BUSY_TIMEOUT = 30

#: Bytes that SQLite's write-ahead log keeps on disk when it is empty.
SQLITE_LOG_BYTES = 64 * 2**20

# Any number, the same in every version: PostgreSQL's name for the migration lock.
_MIGRATION_LOCK = 0x666C7578

MIGRATIONS = Path(__file__).parent.parent / "migrations"


class Database:
    """A pool of connections; `read` and `write` are its two kinds of transaction.

    Args:
        url: of SQLite or PostgreSQL; a path, of an SQLite file.

    Raises:
        ConfigurationError: it can't be used; says why.
    """

    def __init__(self, url: str | Path) -> None:
        self._url = _parse(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        # SQLite has one writer at a time, and waits for it by sleeping: queue here instead.
        self._writing: Any = threading.Lock() if self._is_sqlite else nullcontext()
        if self._is_sqlite:
            _create_private(Path(self._url.database or ""))
        try:
            self.engine = sa.create_engine(
                self._url, pool_size=10, max_overflow=40, json_serializer=_to_json
            )
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"database {self._url.render_as_string()} needs the Python package '{error.name}': "
                f"{install_command('postgresql')}"
            ) from error
        if self._is_sqlite:
            sa.event.listen(self.engine, "connect", _set_up_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads: one consistent view."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that writes: committed at the end, rolled back on an exception."""
        with self._writing, self.engine.connect() as connection:
            writing = connection.execution_options(flux_endpoint_write=True)
            with writing.begin():
                yield writing

    def give_back(self, pages: int) -> None:
        """Return so many unused pages of an SQLite file, if it has them, to the disk."""
        with self._writing, self.engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            # As a script: `execute` would stop after the first page.
            raw.executescript(f"PRAGMA incremental_vacuum({pages})")

    def migrate(self) -> None:
        """Bring the schema up to date; services that start at the same time take turns.

        Raises:
            ConfigurationError: the database can't be reached or written.
        """
        try:
            with self._migration_lock(), self.write() as connection:
                if not self._is_sqlite:
                    lock = sa.text("SELECT pg_advisory_xact_lock(:key)")
                    connection.execute(lock, {"key": _MIGRATION_LOCK})
                if revision_of(connection) != expected_revision():
                    _upgrade(connection)
        except DatabaseError as error:
            raise ConfigurationError(
                f"can't use the database {self._url.render_as_string()}: {error.orig}"
            ) from error
        except _UpgradeError as error:
            raise ConfigurationError(
                f"can't use the database {self._url.render_as_string()}: {error}"
            ) from error

    @contextmanager
    def _migration_lock(self) -> Iterator[None]:
        # Also covers the switch to WAL, for which SQLite doesn't wait its busy timeout.
        if not self._is_sqlite:
            yield
            return
        descriptor = os.open(f"{self._url.database}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with self.engine.connect() as connection:
                raw = connection.connection.dbapi_connection
                assert raw is not None
                raw.execute("PRAGMA journal_mode=WAL")
            yield
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


class _UpgradeError(Exception):
    """The schema can't be brought up to date."""


def _upgrade(connection: sa.Connection) -> None:
    # A good part of a start is spent on its import, and it is needed once after an update.
    import alembic.command  # noqa: PLC0415
    import alembic.config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        alembic.command.upgrade(config, "head")
    except CommandError as error:
        raise _UpgradeError(str(error)) from error


def revision_of(connection: sa.Connection) -> str | None:
    """Return the revision of a database's schema; `None`: it has none."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


@functools.cache
def expected_revision() -> str:
    """Return the revision of the schema that this release works with: the last migration's."""
    return max(path.name[1:5] for path in (MIGRATIONS / "versions").glob("v[0-9]*.py"))


def chunks(ids: Iterable[str], size: int = 500) -> Iterator[tuple[str, ...]]:
    """Split `ids` so that each part fits into one statement's parameters."""
    remaining = iter(ids)
    while chunk := tuple(islice(remaining, size)):
        yield chunk


def _parse(url: str | Path) -> sa.URL:
    if isinstance(url, Path):
        return sa.URL.create("sqlite", database=str(url))
    try:
        parsed = sa.make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "the database URL can't be parsed, expected sqlite:////path/to/service.db or "
            "postgresql://user:password@host/name"
        ) from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigurationError(f"database {backend!r} is not supported: use sqlite or postgresql")
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigurationError("an SQLite database needs a file: sqlite:////path/to/service.db")
    return parsed.set(database=str(Path(parsed.database).absolute()))


def _create_private(path: Path) -> None:
    try:
        # Never one that is there: to close it would drop the locks that SQLite holds on it in this
        # process (fcntl(2)), and another process could delete its log, which we would go on using.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigurationError(f"can't use the database {path}: {error.strerror}") from error


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is ours: see _begin_sqlite
    connection.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_TIMEOUT * 1000}")
    # Before the first table, or without effect: a file made by an earlier release keeps its size.
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute(f"PRAGMA journal_size_limit={SQLITE_LOG_BYTES}")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
    # KiB, of each of up to 50 connections; the kernel has its own cache of the file.
    connection.execute("PRAGMA cache_size=-16384")


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # NaN and infinities, which neither PostgreSQL nor an HTTP client reads
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        return json.dumps(finite)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes its lock first: a reader that turns writer could fail at once with "locked".
    write = connection.get_execution_options().get("flux_endpoint_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
