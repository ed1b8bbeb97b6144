"""The state of the database, and its errors."""

import shutil
import sqlite3
import time
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)

from flux_endpoint.protocol.operations import DatabaseDocument
from flux_endpoint.service.store.engine import Database, expected_revision

#: Errors of a statement or its values, which are bugs of this program.
_FAULTS = (DataError, IntegrityError, NotSupportedError, ProgrammingError)
#: PostgreSQL's error code for a full disk.
_DISK_FULL = "53100"


def database_health(database: Database) -> DatabaseDocument:
    """Return the state of the database, with the duration of a query.

    Raises:
        SQLAlchemyError: it can't be read.
    """
    begun = time.perf_counter()
    with database.read() as connection:
        revision = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    seconds = time.perf_counter() - begun
    engine = database.engine
    sqlite = engine.dialect.name == "sqlite"
    free = shutil.disk_usage(Path(engine.url.database or ".").parent).free if sqlite else None
    return DatabaseDocument(
        kind="sqlite" if sqlite else "postgresql",
        revision=str(revision),
        expected_revision=expected_revision(),
        seconds=seconds,
        free_bytes=free,
    )


def database_trouble(error: BaseException) -> str | None:
    """Return why the database can't be used now, such as a full disk, in words for users.

    `None`: the error has another cause, such as a bug.
    """
    if not isinstance(error, DBAPIError) or isinstance(error, _FAULTS):
        return None
    if isinstance(error.orig, sqlite3.Error):
        return str(error.orig)
    disk_full = getattr(error.orig, "sqlstate", None) == _DISK_FULL
    return "its disk is full" if disk_full else "it can't be reached"  # users must not see hosts
