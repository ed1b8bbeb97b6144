"""`flux-endpoint service user …`: users, their limits, and whether they are let in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from flux_endpoint.cli.administration.limits import (
    LIMITS,
    checked,
    limit_options,
    service_limits,
)
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
    render,
    shown_age,
    shown_bytes,
    shown_moment,
    terminal_width,
    view_options,
)
from flux_endpoint.errors import FluxEndpointError

if TYPE_CHECKING:
    from flux_endpoint.protocol.administration import UserDocument
    from flux_endpoint.service.settings import UserLimits

_COLUMNS = {
    "user": Column("USER", least=8),
    "state": Column("STATE"),
    "used": Column("USED", right=True, goes=2),
    "tokens": Column("TOKENS", right=True, goes=4),
    "endpoints": Column("ENDPOINTS", right=True, goes=3),
    "tasks": Column("TASKS", right=True),
    "queued": Column("QUEUED", right=True, goes=1),
    "created": Column("CREATED", right=True, goes=5),
    "limits": Column("LIMITS", least=10, goes=6),
    "groups": Column("GROUPS", least=8, goes=7),
}


@click.group()
def user() -> None:
    """Create users, set their limits, refuse them, see what they have."""


@user.command()
@click.argument("name")
@limit_options
@database_url_option
def create(name: str, limits: Mapping[str, str], database_url: str | None) -> None:
    """Create the user NAME. Without a limit here, the user has the service's."""
    values = checked(limits)
    database = open_database(database_url)
    from flux_endpoint.service.store import administration, users  # noqa: PLC0415 - with the extra

    with database.write() as connection:
        names = users.all_names(connection)
        if name in names:
            raise FluxEndpointError(f"there is a user {name} already")
        check_new_name("NAME", name, names)
        own = administration.set_limits(connection, users.create_user(connection, name), values)
    database.close()
    record(database_url, "user created", user=name, limits=own or None)
    click.echo(f"User {name} is created. `flux-endpoint service token create {name}` makes a token")


@user.command(name="list")
@view_options(_COLUMNS)
@database_url_option
def list_users(
    *,
    view: View,
    database_url: str | None,
) -> None:
    """List users: state, last use, tokens, endpoints, unfinished tasks, own limits, groups."""
    database = open_database(database_url)
    from flux_endpoint.service.store import administration  # noqa: PLC0415 - with the extra

    with database.read() as connection:
        found = administration.list_users(connection)
    database.close()
    if view.as_json:
        put_json([each.model_dump(mode="json") for each in found])
    elif not found:
        click.echo("No users yet. Create one with: flux-endpoint service user create NAME")
    else:
        rows = [_row(each, time.time()) for each in found]
        view.put(_COLUMNS, rows)


def _row(found: UserDocument, now: float) -> Row:
    own = [
        f"{limit.option.removeprefix('max-')}={limit.shown(float(found.limits[limit.field]))}"
        for limit in LIMITS
        if limit.field in found.limits
    ]
    cells = [
        found.user,
        "enabled" if found.disabled is None else "disabled",
        _ago(found.last_used, now),
        str(found.tokens),
        str(found.endpoints),
        str(found.unfinished),
        shown_bytes(found.queued_bytes),
        shown_age(now - found.created),
        ", ".join(own) or "-",
        ", ".join(found.groups) or "-",
    ]
    return Row(cells, None if found.disabled is None else "quiet")


def _ago(moment: float | None, now: float) -> str:
    return "-" if moment is None else shown_age(now - moment)


@user.command()
@click.argument("name")
@json_option
@database_url_option
def show(*, name: str, as_json: bool, database_url: str | None) -> None:
    """Show the user NAME: what the user has, and of how much.

    Limits that are not set for the user are the service's, as the environment of this command has
    them (FLUX_ENDPOINT_SERVICE_MAX_USER_TASKS and so on).
    """
    database = open_database(database_url)
    from flux_endpoint.service.store import administration  # noqa: PLC0415 - with the extra

    with database.read() as connection:
        user_id = existing_user(connection, name)
        (found,) = administration.list_users(connection, name)
        more = administration.usage(connection, user_id)
    database.close()
    limits = service_limits().with_own(found.limits)
    used = {
        "max_user_tasks": found.unfinished,
        "max_user_queued": found.queued_bytes,
        "keep_user_results": more.result_bytes,
        "max_user_functions": more.functions,
        "max_user_code": more.function_bytes,
        "max_user_endpoints": found.endpoints,
        "max_user_groups": more.task_groups,
    }
    if as_json:
        put_json(
            {
                **found.model_dump(mode="json"),
                "usage": [
                    {
                        "limit": limit.field,
                        "used": used.get(limit.field),
                        "most": _number(getattr(limits, limit.field)),
                        "own": limit.field in found.limits,
                    }
                    for limit in LIMITS
                ],
            }
        )
        return
    for title, text in _lines(found, time.time()):
        click.echo(f"{title:<10} {text}")
    click.echo()
    click.echo(_limit_table(found, limits, used))


def _limit_table(found: UserDocument, limits: UserLimits, used: Mapping[str, float]) -> str:
    columns = [
        Column("LIMIT"),
        Column("USED", right=True),
        Column("MOST", right=True),
        Column("SET FOR", goes=1),
        Column("OF WHAT", least=12, goes=2),
    ]
    rows = [
        Row(
            [
                limit.option,
                limit.shown(used[limit.field]) if limit.field in used else "-",
                limit.shown(float(getattr(limits, limit.field))),
                "this user" if limit.field in found.limits else "all users",
                limit.what,
            ]
        )
        for limit in LIMITS
    ]
    return render(columns, rows, color=False, width=terminal_width())


def _number(value: float) -> float | str:
    return "infinity" if value == float("inf") else value


def _lines(found: UserDocument, now: float) -> Iterator[tuple[str, str]]:
    yield "User", f"{found.user} ({found.user_id})"
    state = "enabled"
    if found.disabled is not None:
        state = f"disabled since {shown_moment(found.disabled)}: all tokens are refused"
    yield "State", state
    yield "Created", shown_moment(found.created)
    used = "never, or not since uses are recorded"
    if found.last_used is not None:
        used = f"{shown_age(now - found.last_used)} ago ({shown_moment(found.last_used)})"
    yield "Last use", used
    yield "Groups", ", ".join(found.groups) or "none"
    yield "Tokens", f"{found.tokens}: flux-endpoint service token list --user {found.user}"


@user.command(name="set")
@click.argument("name")
@limit_options
@database_url_option
def set_limits(name: str, limits: Mapping[str, str], database_url: str | None) -> None:
    """Set limits of the user NAME, over all tokens and endpoints of the user.

    `default` instead of a value gives the user the service's limit again. A running service applies
    a change from the next request on. What the user has already stays, and counts.
    """
    values = checked(limits)
    if not values:
        options = ", ".join(f"--{each.option}" for each in LIMITS)
        raise click.UsageError(f"say which limit to set: {options}")
    database = open_database(database_url)
    from flux_endpoint.service.store import administration  # noqa: PLC0415 - with the extra

    with database.write() as connection:
        own = administration.set_limits(connection, existing_user(connection, name), values)
    database.close()
    record(database_url, "limits of a user set", user=name, limits=own)


@user.command()
@click.argument("name")
@database_url_option
@authorization_url_option
def disable(name: str, database_url: str | None, authorization_url: str | None) -> None:
    """Refuse all tokens of the user NAME, and those of the user's endpoints, until `enable`.

    Nothing is deleted. Tasks that were accepted before still run, at endpoints of others. The
    connections to RabbitMQ are closed at once if the service is reachable at --authorization-url,
    else within a minute.
    """
    if _set_disabled(name, database_url, disabled=True):
        notify_service(authorization_url)


@user.command()
@click.argument("name")
@database_url_option
def enable(name: str, database_url: str | None) -> None:
    """Accept the tokens of the user NAME again."""
    _set_disabled(name, database_url, disabled=False)


def _set_disabled(name: str, database_url: str | None, *, disabled: bool) -> bool:
    database = open_database(database_url)
    from flux_endpoint.service.store import administration  # noqa: PLC0415 - with the extra

    with database.write() as connection:
        user_id = existing_user(connection, name)
        changed = administration.set_disabled(connection, user_id, disabled=disabled)
    database.close()
    word = "disabled" if disabled else "enabled"
    if changed:
        record(database_url, f"user {word}", user=name)
    else:
        click.echo(f"User {name} is {word} already", err=True)
    return changed


@user.command()
@click.argument("name")
@database_url_option
@authorization_url_option
def delete(name: str, database_url: str | None, authorization_url: str | None) -> None:
    """Delete the user NAME, who has no tasks and no endpoints, with all tokens.

    A user who has any is better disabled. Somebody else who gets the same name later is let in
    where an endpoint's `users:` still names it.
    """
    database = open_database(database_url)
    from flux_endpoint.service.store import administration  # noqa: PLC0415 - with the extra

    with database.write() as connection:
        left = administration.delete_user(connection, existing_user(connection, name))
    database.close()
    if left:
        has = ", ".join(f"{number} {noun}" for noun, number in left.items())
        raise FluxEndpointError(
            f"user {name} still has {has}: `flux-endpoint service user disable {name}` refuses the "
            "user and keeps them"
        )
    record(database_url, "user deleted", user=name)
    notify_service(authorization_url)
