"""Databases for services in tests: SQLite, and PostgreSQL if the environment names a server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

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
