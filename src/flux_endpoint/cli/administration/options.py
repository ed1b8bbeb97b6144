"""Options of the commands that run or administer a service, and what they open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flux_endpoint import extras, logs, paths
from flux_endpoint.audit import AuditLog
from flux_endpoint.cli.process import quick_imports
from flux_endpoint.errors import NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from flux_endpoint.service.store.engine import Database


def setting(name: str, text: str, *synonyms: str, **attributes: Any) -> Callable[[Any], Any]:
    """Return an option that the environment can give, too, as `FLUX_ENDPOINT_SERVICE_NAME`.

    Args:
        name: its name, without dashes in front.
        text: its help.
        synonyms: further names of the option, with dashes in front.
        attributes: further arguments of `click.option`.
    """
    variable = "FLUX_ENDPOINT_SERVICE_" + name.upper().replace("-", "_")
    return click.option(
        f"--{name}",
        *synonyms,
        name.replace("-", "_"),
        envvar=variable,
        show_envvar=True,
        help=text,
        show_default=True,
        **attributes,
    )


database_url_option = setting(
    "database-url",
    "sqlite:////path/service.db or postgresql://user:password@host/name.  "
    "[default: service.db in the state directory]",
)

authorization_url_option = setting(
    "authorization-url",
    "URL at which RabbitMQ asks this service for permissions, http://HOST:PORT/SECRET.",
)


def keep_options(command: Any) -> Any:
    """Add the options that say how long, and how many, records are kept."""
    for option in (
        setting(
            "keep-user-results",
            "The most bytes of results of each user (K, M, G, T); the oldest are removed first.",
            default="10G",
        ),
        setting(
            "keep-functions", "How long functions are kept after their last use.", default="90d"
        ),
        setting(
            "keep-tasks",
            "How long tasks and results are kept after their end.",
            "--keep-results",
            default="14d",
        ),
    ):
        command = option(command)
    return command


def database_at(database_url: str | None) -> str | Path:
    """Return the database that `--database-url` names, by default the file of this user."""
    return database_url or paths.home() / "service.db"


def open_database(database_url: str | None) -> Database:
    """Return the database, with its schema up to date.

    Raises:
        ConfigurationError: the URL is invalid, or the database can't be used.
    """
    logs.configure("WARNING")
    extras.require("service", "the service")
    with quick_imports():
        from flux_endpoint.service.store.engine import Database  # noqa: PLC0415 - with the extra

    database = Database(database_at(database_url))
    database.migrate()
    return database


def record(database_url: str | None, what: str, **about: Any) -> None:
    """Record a change in the service's audit log, if there is one.

    Args:
        database_url: the value of `--database-url`.
        what: the change, in a few words.
        about: further fields.
    """
    audit = AuditLog(audit_log_at(database_url))
    audit.write(what, by="the service's command line", **about)
    audit.close()


def audit_log_at(database_url: str | None) -> Path | None:
    """Return the path of the service's audit log; `None`: there is none.

    Args:
        database_url: the value of `--database-url`.
    """
    from flux_endpoint.service.audit import default_path  # noqa: PLC0415 - with the extra

    path = os.environ.get("FLUX_ENDPOINT_SERVICE_AUDIT_LOG")
    return Path(path) if path else default_path(database_at(database_url))


def notify_service(authorization_url: str | None) -> None:
    """Tell a running service that tokens were revoked; without that it notices within a minute.

    Args:
        authorization_url: the value of `--authorization-url`.
    """
    if not authorization_url:
        return
    from flux_endpoint.http_library import httpx  # noqa: PLC0415 - only here

    with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL):
        httpx.post(f"{authorization_url.rstrip('/')}/revoked", timeout=5, trust_env=False)


def existing_user(connection: Connection, name: str) -> str:
    """Return the id of the user with a name.

    Raises:
        NotFoundError: there is none.
    """
    from flux_endpoint.service.store import users  # noqa: PLC0415 - with the extra

    found = users.user_id_of(connection, name)
    if found is None:
        raise NotFoundError(
            f"there is no user {name}: `flux-endpoint service user list` shows those that there are"
        )
    return found


def check_new_name(what: str, name: str, others: Iterable[str]) -> None:
    """Check that people can't mistake a name for another one.

    Args:
        what: what it names, as the command's help calls it.
        name: the name.
        others: the names that exist; `name` may be one of them.

    Raises:
        click.BadParameter: the name is invalid, or too similar to another.
    """
    from flux_endpoint.service.names import fault_of, similar_name  # noqa: PLC0415 - as above

    known = set(others)
    if name in known:
        return
    if fault := fault_of(name):
        raise click.BadParameter(f"{what} must {fault}")
    if other := similar_name(name, known):
        raise click.BadParameter(
            f"{what} {name} differs from {other}, which there is, in upper and lower case alone"
        )
