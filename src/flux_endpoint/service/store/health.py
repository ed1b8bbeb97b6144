"""How the database is."""

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

#: Errors of a statement or its values, which are a fault of this program.
_FAULTS = (DataError, IntegrityError, NotSupportedError, ProgrammingError)
#: PostgreSQL's code for it.
_DISK_FULL = "53100"


def database_health(database: Database) -> DatabaseDocument:
    """Return how the database is, after a query.

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
    """Return why a database is of no use now, for people who don't run it; `None`: it is not that.

    A full disk, a lost connection or a damaged file are nobody's fault who asks.
    """
    if not isinstance(error, DBAPIError) or isinstance(error, _FAULTS):
        return None
    if isinstance(error.orig, sqlite3.Error):
        return str(error.orig)
    disk_full = getattr(error.orig, "sqlstate", None) == _DISK_FULL
    return "its disk is full" if disk_full else "it can't be reached"  # hosts are its own affair
