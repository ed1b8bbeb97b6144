"""Copies an SQLite database while others use it."""

import contextlib
import errno
import os
import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.service.store.engine import Database, sqlite_file

_COPY = "VACUUM INTO ?"


def copy_database(url: str | Path, to: Path) -> int:
    """Copy a database to a new file, as of one moment; others may write in the meantime.

    Args:
        url: URL or path of the database, which must exist.
        to: the copy; it appears under this name when it is complete and on disk.

    Returns:
        The size of the copy in bytes.

    Raises:
        ConfigurationError: the database is none of SQLite's, or does not exist.
        FileExistsError: `to` exists.
        OSError: the copy can't be written.
        DatabaseError: the database can't be read, or the disk is full.
    """
    path = sqlite_file(url)
    if path is None:
        raise ConfigurationError(
            "the database is PostgreSQL's: copy it with pg_dump --format=custom --file=FILE URL"
        )
    if not path.exists():
        raise ConfigurationError(f"there is no database {path}")
    if os.path.lexists(to):
        raise FileExistsError(errno.EEXIST, "it exists already", str(to))
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        database = Database(path)
        try:
            # Into an empty file, which keeps its mode.
            with database.engine.connect() as connection:
                raw = connection.connection.dbapi_connection
                assert raw is not None
                try:
                    raw.execute(_COPY, (str(partial),))
                except sqlite3.Error as error:
                    raise DBAPIError.instance(
                        _COPY, None, error, sqlite3.Error, dialect=connection.dialect
                    ) from error
        finally:
            database.close()
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
        partial.rename(to)
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            partial.unlink()
    return size
