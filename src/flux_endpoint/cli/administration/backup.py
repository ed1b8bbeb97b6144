"""`flux-endpoint service backup`: a consistent copy of a running service's database."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click

from flux_endpoint import extras
from flux_endpoint.cli.administration.options import database_at, database_url_option, record
from flux_endpoint.cli.process import quick_imports
from flux_endpoint.cli.table import shown_bytes
from flux_endpoint.errors import FluxEndpointError


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@database_url_option
def backup(file: Path, database_url: str | None) -> None:
    """Write a copy of the SQLite database to FILE, while the service runs or not.

    FILE must not exist. It holds users' tasks and results, and the keys of accounts at RabbitMQ:
    only its owner can read it. Copies of service.db with `cp` lack recent changes, or are damaged.
    """
    extras.require("service", "the service")
    with quick_imports():
        from sqlalchemy.exc import DatabaseError  # noqa: PLC0415 - only with the extra

        from flux_endpoint.service.store import copying  # noqa: PLC0415 - only with the extra

    try:
        size = copying.copy_database(database_at(database_url), file)
    except OSError as error:
        where = error.filename or file
        raise FluxEndpointError(f"no backup, {where}: {error.strerror}") from error
    except DatabaseError as error:
        raise FluxEndpointError(f"no backup: {error.orig}") from error
    with contextlib.suppress(OSError):
        record(database_url, "database copied", file=os.fspath(file.absolute()))
    click.echo(f"Wrote {file} ({shown_bytes(size)}).")
