"""The database connection, SQLite or PostgreSQL: read and write transactions, migrations."""

import fcntl
import functools
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.extras import install_command

#: Seconds to wait while another process writes to the same SQLite file.
SQLITE_BUSY_TIMEOUT = 30

#: Maximum bytes that SQLite's write-ahead log occupies on disk while it is empty.
SQLITE_LOG_BYTES = 64 * 2**20
#: Size of the log in bytes from which a commit copies it into the file and synchronizes both. By
#: default 4 MiB: after three payloads of 1 MiB, most of which are deleted soon after.
SQLITE_LOG_COPIED = 32 * 2**20
#: Size of a new file's pages in bytes. A commit writes each page of a payload to the log
#: separately: with SQLite's 4 KiB, a MiB takes twice the CPU time, and a small commit as much.
SQLITE_PAGE = 16 * 2**10

# Key of PostgreSQL's advisory lock for migrations: an arbitrary number, the same in all versions.
_MIGRATION_LOCK = 0x666C7578

MIGRATIONS = Path(__file__).parent.parent / "migrations"


class Database:
    """A pool of database connections; `read` and `write` are its two kinds of transactions.

    Args:
        url: URL of an SQLite or PostgreSQL database, or path of an SQLite file.

    Raises:
        ConfigurationError: the URL is invalid, or the database can't be used.
    """

    def __init__(self, url: str | Path) -> None:
        self._url = _parse(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        # SQLite permits one writer at a time and polls for its turn. A lock wakes threads at once.
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
        #: The same pool, for transactions that write.
        self._writer = self.engine.execution_options(flux_endpoint_write=True)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a read-only transaction, which has one consistent view."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction that writes; it is committed, or rolled back on an exception."""
        with self._writing, self._writer.begin() as connection:
            yield connection

    def give_back(self, pages: int) -> None:
        """Return up to `pages` unused pages of an SQLite file to the file system."""
        with self._writing, self.engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            # `executescript`, since `execute` would stop after the first page.
            raw.executescript(f"PRAGMA incremental_vacuum({pages})")

    def migrate(self) -> None:
        """Migrate the schema to the current version. A lock makes concurrent services take turns.

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
        # The lock also covers the switch to WAL, for which SQLite ignores the busy timeout.
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
    """The schema can't be migrated."""


def _upgrade(connection: sa.Connection) -> None:
    # Imported here, since the import is slow and a migration is needed only after an update.
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
    """Return the revision of a database's schema; `None` if there is no schema."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


@functools.cache
def expected_revision() -> str:
    """Return the schema revision that this release needs: that of the last migration."""
    return max(path.name[1:5] for path in (MIGRATIONS / "versions").glob("v[0-9]*.py"))


def chunks(ids: Iterable[str], size: int = 500) -> Iterator[tuple[str, ...]]:
    """Split `ids` into parts that fit into the parameters of one SQL statement.

    Args:
        ids: ids.
        size: maximum number of ids in a part.
    """
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


def sqlite_file(url: str | Path) -> Path | None:
    """Return the file of an SQLite database; `None`: it is another database.

    Raises:
        ConfigurationError: the URL is invalid.
    """
    parsed = _parse(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def _create_private(path: Path) -> None:
    try:
        # Only if it is missing. Closing an existing file would drop the locks that SQLite holds on
        # it in this process (fcntl(2)). Another process could then delete the log that is in use.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigurationError(f"can't use the database {path}: {error.strerror}") from error


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # _begin_sqlite sends BEGIN
    connection.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_TIMEOUT * 1000}")
    # These two have an effect only before the first table: files of earlier releases never shrink.
    connection.execute(f"PRAGMA page_size={SQLITE_PAGE}")
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute(f"PRAGMA journal_size_limit={SQLITE_LOG_BYTES}")
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    connection.execute(f"PRAGMA wal_autocheckpoint={SQLITE_LOG_COPIED // page}")
    # Distributions differ in the default. On, each deleted payload is written once more, as zeros.
    connection.execute("PRAGMA secure_delete=OFF")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
    # 16 MiB for each of up to 50 connections; the kernel caches the file as well.
    connection.execute("PRAGMA cache_size=-16384")


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # NaN or infinity, which PostgreSQL and HTTP clients don't accept
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        return json.dumps(finite)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer locks at BEGIN: an upgrade from a read lock could fail at once with "locked".
    write = connection.get_execution_options().get("flux_endpoint_write", False)
    statement = "BEGIN IMMEDIATE" if write else "BEGIN"
    raw = connection.connection.dbapi_connection
    assert raw is not None
    try:
        raw.execute(statement)  # without the rest of SQLAlchemy, which takes ten times as long
    except sqlite3.Error as error:
        raise DBAPIError.instance(
            statement, None, error, sqlite3.Error, dialect=connection.dialect
        ) from error
