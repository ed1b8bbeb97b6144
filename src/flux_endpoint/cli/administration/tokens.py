"""`flux-endpoint service token …`: bearer tokens of users and endpoints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from flux_endpoint.cli.administration.options import (
    authorization_url_option,
    check_new_name,
    database_url_option,
    existing_user,
    notify_service,
    open_database,
    record,
)
from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.table import (
    Column,
    Row,
    View,
    shown_age,
    shown_moment,
    view_options,
)
from flux_endpoint.errors import NotFoundError
from flux_endpoint.protocol.duration import parse_duration
from flux_endpoint.service.scope import DEFAULT_SCOPES, TokenScope

if TYPE_CHECKING:
    from flux_endpoint.service.store.users import Token

# Seconds: 100 years.
_LONGEST_EXPIRY = 100 * 365 * 86_400
# Characters of a label.
_LONGEST_LABEL = 256

_COLUMNS = {
    "id": Column("ID"),
    "user": Column("USER", least=8),
    "scopes": Column("SCOPES", least=8, goes=4),
    "used": Column("USED", right=True, goes=1),
    "expires": Column("EXPIRES", right=True),
    "created": Column("CREATED", right=True, goes=2),
    "label": Column("LABEL", least=8, goes=3),
    "endpoint": Column("ENDPOINT", least=8, goes=5),
}


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
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([each.value for each in TokenScope]),
    help="What the token permits; may be repeated.  [default: read, submit and endpoints]",
)
@click.option("--expires", metavar="DURATION", help="Lifetime of the token, such as 30d or 12h.")
@click.option("--label", metavar="TEXT", help="What the token is for, for the list of tokens.")
@json_option
@database_url_option
def create(
    *,
    user: str,
    endpoint: str | None,
    scopes: tuple[str, ...],
    expires: str | None,
    label: str | None,
    as_json: bool,
    database_url: str | None,
) -> None:
    """Print a new token of USER, who is created if missing. It can't be shown again.

    The scope `read` permits reading the user's own tasks, results and endpoints; `submit` also
    functions and tasks; `endpoints` also registering and deleting endpoints; `admin` reading the
    tasks, endpoints and users of everybody (GET /v3/admin/...).
    """
    if endpoint is not None and scopes:
        raise click.UsageError("a token for an --endpoint has no --scope")
    if label is not None and not (0 < len(label) <= _LONGEST_LABEL and label.isprintable()):
        raise click.BadParameter("must have 1 to 256 printable characters", param_hint="--label")
    expires_at = _expiry(expires)
    database = open_database(database_url)
    from flux_endpoint.service.store import endpoints, users  # noqa: PLC0415 - only with the extra

    chosen = frozenset({TokenScope.READ, *map(TokenScope, scopes)}) if scopes else None
    with database.write() as connection:
        check_new_name("USER", user, users.all_names(connection))
        if endpoint is None:
            created = users.create_token(connection, user, expires_at, scopes=chosen, label=label)
        else:
            known = endpoints.get_endpoint(connection, endpoint)
            if known is None or known.owner != user or known.parent_id is not None:
                raise NotFoundError(f"{user} has no endpoint with the id {endpoint}")
            created = users.create_endpoint_token(
                connection, known.owner_id, known.id, expires_at, label
            )
    database.close()
    token_id = users.token_id(created)
    record(
        database_url,
        "token created",
        user=user,
        endpoint_id=endpoint,
        token_id=token_id,
        scopes=None if chosen is None else sorted(chosen),
    )
    if as_json:
        put_json({"token": created, "id": token_id, "user": user, "expires_at": expires_at})
    else:
        click.echo(created)


@token.command(name="list")
@click.option("--user", metavar="NAME", help="Only tokens of this user.")
@view_options(_COLUMNS)
@database_url_option
def list_tokens(
    *,
    user: str | None,
    view: View,
    database_url: str | None,
) -> None:
    """List tokens: user, scopes, last use (to ten minutes), expiry, and what they are for."""
    database = open_database(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.read() as connection:
        user_id = None if user is None else existing_user(connection, user)
        found = users.list_tokens(connection, user_id)
    database.close()
    now = time.time()
    if view.as_json:
        put_json([_document(each, now) for each in found])
    elif not found:
        click.echo("No tokens. Create one with: flux-endpoint service token create USER")
    else:
        rows = [_row(each, now) for each in found]
        view.put(_COLUMNS, rows)


def _document(found: Token, now: float) -> dict[str, Any]:
    return {
        "id": found.id,
        "user": found.user,
        "endpoint_id": found.endpoint_id,
        "scopes": None if found.endpoint_id else sorted(found.scopes),
        "label": found.label,
        "created_at": found.created_at,
        "expires_at": found.expires_at,
        "expired": found.is_expired(now),
        "last_used_at": found.last_used_at,
    }


def _row(found: Token, now: float) -> Row:
    expires = "never"
    if found.expires_at is not None:
        expires = "expired" if found.is_expired(now) else f"in {shown_age(found.expires_at - now)}"
    cells = [
        found.id,
        found.user,
        _scopes(found),
        "-" if found.last_used_at is None else shown_age(now - found.last_used_at),
        expires,
        shown_age(now - found.created_at),
        found.label or "-",
        found.endpoint_id or "-",
    ]
    return Row(cells, "quiet" if found.is_expired(now) else None)


def _scopes(found: Token) -> str:
    if found.endpoint_id is not None:
        return "one endpoint"
    return "default" if found.scopes == DEFAULT_SCOPES else ",".join(sorted(found.scopes))


@token.command()
@click.argument("id")
@json_option
@database_url_option
def show(
    *,
    id: str,  # noqa: A002 - the argument's shown name
    as_json: bool,
    database_url: str | None,
) -> None:
    """Show the token with the ID that `list` shows; ID may also be the token itself."""
    database = open_database(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.read() as connection:
        its_id = users.known_token_id(connection, id)
        found = next((each for each in users.list_tokens(connection) if each.id == its_id), None)
    database.close()
    if found is None:
        raise _unknown()
    now = time.time()
    if as_json:
        put_json(_document(found, now))
        return
    expires = "never" if found.expires_at is None else shown_moment(found.expires_at)
    used = "never, or not since uses are recorded"
    if found.last_used_at is not None:
        used = f"{shown_age(now - found.last_used_at)} ago ({shown_moment(found.last_used_at)})"
    scopes = _scopes(found) if found.endpoint_id else ", ".join(sorted(found.scopes))
    lines = {
        "Token": found.id,
        "User": found.user,
        "Scopes": scopes,
        "Endpoint": found.endpoint_id,
        "Label": found.label,
        "Created": shown_moment(found.created_at),
        "Expires": f"{expires}{' (expired)' if found.is_expired(now) else ''}",
        "Last use": used,
    }
    for title, text in lines.items():
        if text is not None:
            click.echo(f"{title:<10} {text}")


@token.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--user", metavar="NAME", help="All tokens of this user, those of endpoints, too.")
@database_url_option
@authorization_url_option
def revoke(
    ids: tuple[str, ...],
    user: str | None,
    database_url: str | None,
    authorization_url: str | None,
) -> None:
    """Revoke the tokens with the IDs that `list` shows; an ID may also be the token itself.

    Their connections to RabbitMQ are closed at once if the service is reachable at
    --authorization-url, else within a minute.
    """
    if bool(ids) == (user is not None):
        raise click.UsageError("say which tokens to revoke: their IDs, or --user NAME")
    database = open_database(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.write() as connection:
        if user is None:
            known = [users.known_token_id(connection, each) for each in ids]
        else:
            theirs = users.list_tokens(connection, existing_user(connection, user))
            known = [each.id for each in theirs]
        revoked = [each for each in known if each and users.revoke_token(connection, each)]
    database.close()
    for each in revoked:
        record(database_url, "token revoked", token_id=each, user=user)
    if revoked:
        notify_service(authorization_url)
    if None in known:
        raise _unknown()
    if user is not None:
        click.echo(f"{len(revoked)} token{'' if len(revoked) == 1 else 's'} revoked")


def _unknown() -> NotFoundError:
    return NotFoundError("no token has that id: `flux-endpoint service token list` shows them")


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
