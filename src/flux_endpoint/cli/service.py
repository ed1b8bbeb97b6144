"""`flux-endpoint service …`: run the REST service, and manage its tokens."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from flux_endpoint import extras, logs, paths
from flux_endpoint.audit import AuditLog
from flux_endpoint.cli.process import quick_imports
from flux_endpoint.errors import ConfigurationError, NotFoundError
from flux_endpoint.protocol.duration import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection

    from flux_endpoint.service.store.engine import Database

# Seconds: 100 years.
_LONGEST_EXPIRY = 100 * 365 * 86_400


def _setting(name: str, text: str, **attributes: Any) -> Callable[[Any], Any]:
    variable = "FLUX_ENDPOINT_SERVICE_" + name.upper().replace("-", "_")
    return click.option(
        f"--{name}", envvar=variable, show_envvar=True, help=text, show_default=True, **attributes
    )


_database_url = _setting(
    "database-url",
    "sqlite:////path/service.db or postgresql://user:password@host/name.  "
    "[default: service.db in the state directory]",
)


_authorization_url = _setting(
    "authorization-url",
    "URL at which RabbitMQ asks this service for permissions, http://HOST:PORT/SECRET.",
)


@click.group()
def service() -> None:
    """Run the REST service, and manage its tokens.

    Every option can be given in the environment. URLs with passwords should be, since everybody on
    the machine can read command lines.
    """


@service.command()
@_setting("host", "Address to listen on.", default="127.0.0.1")
@_setting("port", "Port to listen on; 0: a free one.", default=8080, type=int)
@_setting(
    "plain-http",
    "Listen on other than the loopback interface although tokens and tasks are not encrypted.",
    is_flag=True,
    default=False,
)
@_database_url
@_setting(
    "amqp-url",
    "URL of RabbitMQ for the service itself.",
    default="amqp://guest:guest@127.0.0.1:5672/%2F",
)
@_authorization_url
@_setting(
    "management-url",
    "RabbitMQ's management API, http://HOST:PORT, to close connections of revoked tokens.",
)
@_setting(
    "shared-broker-accounts",
    "Let all users share the accounts in the two URLs below: RabbitMQ does not separate them.",
    is_flag=True,
)
@_setting(
    "endpoint-amqp-url",
    "URL of RabbitMQ for endpoints.  [default: --amqp-url without its account]",
)
@_setting(
    "client-amqp-url",
    "URL of RabbitMQ for clients.  [default: --amqp-url without its account]",
)
@_setting(
    "audit-log",
    "Audit log, one JSON object per line.  [default: audit.jsonl next to an SQLite "
    "database, none for another database]",
)
@_setting(
    "metrics-users",
    "Users whose tokens may read GET /metrics, which tells of all users: names with commas "
    "between them, or * for all.  [default: none]",
)
@_setting(
    "official-window",
    "The most unfinished tasks that an official endpoint is given; as many are lost with it.",
    default=2000,
    type=int,
)
@_setting("max-connections", "The most concurrent HTTP connections.", default=1024, type=int)
@_setting(
    "max-connections-per-address",
    "The same for each address other than the loopback interface; 0: no limit (behind a proxy).",
    default=256,
    type=int,
)
@_setting(
    "max-account-connections",
    "The most RabbitMQ connections of each user's token, by the management API.",
    default=256,
    type=int,
)
@_setting("keep-tasks", "How long tasks and results are kept after their end.", default="14d")
@_setting("keep-functions", "How long functions are kept after their last use.", default="90d")
@_setting(
    "keep-user-results",
    "The most bytes of results of each user (K, M, G, T); the oldest are removed first.",
    default="10G",
)
@_setting("max-user-requests", "The most requests of a user per second.", default=200, type=float)
@_setting("max-user-tasks", "The most unfinished tasks of each user.", default=200_000, type=int)
@_setting("max-user-queued", "The most bytes of their arguments (K, M, G, T).", default="10G")
@_setting("max-user-functions", "The most functions of each user.", default=20_000, type=int)
@_setting("max-user-code", "The most bytes of these functions (K, M, G, T).", default="1G")
@_setting("max-user-endpoints", "The most endpoints of each user.", default=200, type=int)
@_setting("max-user-groups", "The most task groups of each user.", default=20_000, type=int)
@_setting(
    "max-user-queues",
    "The most queues that clients of each user open in ten minutes.",
    default=2000,
    type=int,
)
@_setting("log-format", "Format of the log.", type=click.Choice(["text", "json"]), default="text")
def run(log_format: logs.LogFormat, database_url: str | None, **options: Any) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    logs.configure(log_format=log_format)
    extras.require("service", "the service")
    with quick_imports():
        from flux_endpoint.service import server, settings  # noqa: PLC0415 - only with the extra

    given = {name: value for name, value in options.items() if value is not None}
    try:
        checked = settings.ServiceSettings(database_url=_url(database_url), **given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        text = problem["msg"].removeprefix("Value error, ")
        # Errors of several options name them themselves.
        where = [f"--{str(name).replace('_', '-')}: " for name in problem["loc"][:1]]
        raise ConfigurationError("".join(where) + text) from error
    server.run(checked)


@service.command()
@_database_url
def migrate(database_url: str | None) -> None:
    """Bring the database's schema up to date (`run` does this, too)."""
    _open(database_url).close()


@service.group()
def token() -> None:
    """Create, list and revoke bearer tokens."""


@token.command()
@click.argument("user")
@click.option(
    "--endpoint",
    metavar="ID",
    help="A token that only allows acting as this endpoint of USER's.",
)
@click.option("--expires", metavar="DURATION", help="Lifetime of the token, such as 30d or 12h.")
@_database_url
def create(user: str, endpoint: str | None, expires: str | None, database_url: str | None) -> None:
    """Print a new token of USER, who is created if missing. It can't be shown again."""
    expires_at = _expiry(expires)
    database = _open(database_url)
    from flux_endpoint.service.store import endpoints, users  # noqa: PLC0415 - only with the extra

    with database.write() as connection:
        _unlike("USER", user, users.all_names(connection))
        if endpoint is None:
            created = users.create_token(connection, user, expires_at)
        else:
            known = endpoints.get_endpoint(connection, endpoint)
            if known is None or known.owner != user or known.parent_id is not None:
                raise NotFoundError(f"{user} has no endpoint with the id {endpoint}")
            created = users.create_endpoint_token(connection, known.owner_id, known.id, expires_at)
    database.close()
    _record(
        database_url,
        "token created",
        user=user,
        endpoint_id=endpoint,
        token_id=users.token_id(created),
    )
    click.echo(created)


@token.command(name="list")
@_database_url
def list_tokens(database_url: str | None) -> None:
    """List tokens: id, creation, expiry, user, and the endpoint that it is limited to."""
    database = _open(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.read() as connection:
        found = users.list_tokens(connection)
    database.close()
    for each in found:
        expires = _moment(each.expires_at) if each.expires_at is not None else "never"
        alone = "" if each.endpoint_id is None else f"  endpoint {each.endpoint_id}"
        click.echo(f"{each.id}  {_moment(each.created_at)}  {expires:20}  {each.user}{alone}")


@token.command()
@click.argument("id")
@_database_url
@_authorization_url
def revoke(
    id: str,  # noqa: A002 - the argument's shown name
    database_url: str | None,
    authorization_url: str | None,
) -> None:
    """Revoke the token with the ID that `list` shows; ID may also be the token itself.

    Its connections to RabbitMQ are closed at once if the service is reachable at
    --authorization-url, else within a minute.
    """
    database = _open(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.write() as connection:
        revoked = users.revoke_token(connection, id)
    database.close()
    if revoked:
        _record(database_url, "token revoked", token_id=id if len(id) <= 12 else users.token_id(id))
    if not revoked:
        raise NotFoundError("no token has that id: `flux-endpoint service token list` shows them")
    if authorization_url:
        _tell_service(authorization_url)


def _tell_service(authorization_url: str) -> None:
    """Tell a running service that a token was revoked; if that fails, it will notice later."""
    from flux_endpoint.http_library import httpx  # noqa: PLC0415 - only here

    with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL):
        httpx.post(f"{authorization_url.rstrip('/')}/revoked", timeout=5, trust_env=False)


def _expiry(expires: str | None) -> float | None:
    """Return the expiry of a token with the option `--expires`; `None`: never."""
    if expires is None:
        return None
    try:
        seconds = parse_duration(expires)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--expires") from None
    if not 0 < seconds < _LONGEST_EXPIRY:
        raise click.BadParameter(
            "must be more than 0, and less than 100 years; leave it out for "
            "a token that doesn't expire",
            param_hint="--expires",
        )
    return time.time() + seconds


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@service.group()
def group() -> None:
    """Manage groups of users, which an endpoint's `groups:` can name."""


@group.command()
@click.argument("group")
@click.argument("user", nargs=-1, required=True)
@_database_url
def add(group: str, user: tuple[str, ...], database_url: str | None) -> None:
    """Add each USER to GROUP, which is created if missing."""
    database = _open(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.write() as connection:
        _unlike("GROUP", group, users.list_groups(connection))
        for each in user:
            users.join_group(connection, group, _user_id(connection, each))
    database.close()
    _record(database_url, "users added to a group", group=group, users=list(user))


@group.command()
@click.argument("group")
@click.argument("user", nargs=-1, required=True)
@_database_url
def remove(group: str, user: tuple[str, ...], database_url: str | None) -> None:
    """Remove each USER from GROUP; a group without users disappears."""
    database = _open(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.write() as connection:
        for each in user:
            if not users.leave_group(connection, group, _user_id(connection, each)):
                raise NotFoundError(f"{each} is not in the group {group}")
    database.close()
    _record(database_url, "users removed from a group", group=group, users=list(user))


@group.command(name="list")
@_database_url
def list_groups(database_url: str | None) -> None:
    """List the groups with their users."""
    database = _open(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.read() as connection:
        found = users.list_groups(connection)
    database.close()
    for name, members in found.items():
        click.echo(f"{name}: {', '.join(members)}")


def _record(database_url: str | None, what: str, **about: Any) -> None:
    """Record a change in the service's audit log, if that has its default path."""
    from flux_endpoint.service.audit import default_path  # noqa: PLC0415 - only with the extra

    path = os.environ.get("FLUX_ENDPOINT_SERVICE_AUDIT_LOG")
    audit = AuditLog(Path(path) if path else default_path(_url(database_url)))
    audit.write(what, by="the service's command line", **about)
    audit.close()


def _user_id(connection: Connection, name: str) -> str:
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    found = users.user_id_of(connection, name)
    if found is None:
        raise NotFoundError(f"there is no user {name}: `service token create` makes one")
    return found


def _unlike(what: str, name: str, others: Iterable[str]) -> None:
    """Reject a new name that people could mistake for an existing one."""
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


def _open(database_url: str | None) -> Database:
    """Return the database, with its schema up to date."""
    logs.configure("WARNING")
    extras.require("service", "the service")
    with quick_imports():
        from flux_endpoint.service.store.engine import Database  # noqa: PLC0415 - as above

    database = Database(_url(database_url))
    database.migrate()
    return database


def _url(database_url: str | None) -> str | Path:
    return database_url or paths.home() / "service.db"
