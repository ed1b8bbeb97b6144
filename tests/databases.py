"""Databases for services in tests: SQLite, and PostgreSQL if the environment names a server."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest
import sqlalchemy as sa

#: URL of a PostgreSQL server on which tests may create databases; they also run on it if it is set.
POSTGRESQL_VARIABLE = "FLUX_ENDPOINT_TEST_POSTGRESQL_URL"


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRESQL_VARIABLE in os.environ else [])])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'service.db'}"
        return
    server = os.environ[POSTGRESQL_VARIABLE]
    name = f"test_{uuid.uuid4().hex}"
    url = sa.make_url(server).set(drivername="postgresql+psycopg")
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        admin.dispose()


@functools.cache
def _migrated() -> Path:
    from flux_endpoint.service.store.engine import Database

    directory = tempfile.mkdtemp(prefix="flux-endpoint-tests-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = Path(directory, "service.db")
    database = Database(path)
    database.migrate()
    database.close()
    return path


def make_migrated(path: Path) -> None:
    """Make an SQLite file with the schema: a copy, since a migration takes as long as many a test.

    Args:
        path: where; nothing is there yet.
    """
    assert not path.exists(), f"a service may be using {path}"
    shutil.copy(_migrated(), path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE secrets SET value = ?", [token_hex(32)])  # each has its own key


def create_token(path: Path, user: str) -> str:
    """Return a new token of a user in a service's SQLite file, made without a program's start.

    Args:
        path: the file; made if missing.
        user: created if missing.
    """
    from flux_endpoint.service.store import users
    from flux_endpoint.service.store.engine import Database

    if not path.exists():
        make_migrated(path)
    database = Database(path)
    try:
        with database.write() as connection:
            return users.create_token(connection, user)
    finally:
        database.close()
