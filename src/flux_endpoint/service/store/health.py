"""How the database is."""

import shutil
import time
from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from flux_endpoint.protocol.operations import DatabaseDocument
from flux_endpoint.service.store.engine import MIGRATIONS, Database


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


def expected_revision() -> str:
    """Return the revision of the schema that this release works with."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return str(ScriptDirectory.from_config(config).get_current_head())
