"""`flux-endpoint service token …`: bearer tokens of users and endpoints."""

from __future__ import annotations

import time

import click

from flux_endpoint.cli.administration.options import (
    authorization_url_option,
    check_new_name,
    database_url_option,
    notify_service,
    open_database,
    record,
)
from flux_endpoint.errors import NotFoundError
from flux_endpoint.protocol.duration import parse_duration

# Seconds: 100 years.
_LONGEST_EXPIRY = 100 * 365 * 86_400


@click.group()
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
@database_url_option
def create(user: str, endpoint: str | None, expires: str | None, database_url: str | None) -> None:
    """Print a new token of USER, who is created if missing. It can't be shown again."""
    expires_at = _expiry(expires)
    database = open_database(database_url)
    from flux_endpoint.service.store import endpoints, users  # noqa: PLC0415 - only with the extra

    with database.write() as connection:
        check_new_name("USER", user, users.all_names(connection))
        if endpoint is None:
            created = users.create_token(connection, user, expires_at)
        else:
            known = endpoints.get_endpoint(connection, endpoint)
            if known is None or known.owner != user or known.parent_id is not None:
                raise NotFoundError(f"{user} has no endpoint with the id {endpoint}")
            created = users.create_endpoint_token(connection, known.owner_id, known.id, expires_at)
    database.close()
    record(
        database_url,
        "token created",
        user=user,
        endpoint_id=endpoint,
        token_id=users.token_id(created),
    )
    click.echo(created)


@token.command(name="list")
@database_url_option
def list_tokens(database_url: str | None) -> None:
    """List tokens: id, creation, expiry, user, and the endpoint that it is limited to."""
    database = open_database(database_url)
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
@database_url_option
@authorization_url_option
def revoke(
    id: str,  # noqa: A002 - the argument's shown name
    database_url: str | None,
    authorization_url: str | None,
) -> None:
    """Revoke the token with the ID that `list` shows; ID may also be the token itself.

    Its connections to RabbitMQ are closed at once if the service is reachable at
    --authorization-url, else within a minute.
    """
    database = open_database(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.write() as connection:
        revoked = users.revoke_token(connection, id)
    database.close()
    if revoked:
        record(database_url, "token revoked", token_id=id if len(id) <= 12 else users.token_id(id))
    if not revoked:
        raise NotFoundError("no token has that id: `flux-endpoint service token list` shows them")
    notify_service(authorization_url)


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
