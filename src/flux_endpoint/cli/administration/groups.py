"""`flux-endpoint service group …`: groups of users."""

from __future__ import annotations

import click

from flux_endpoint.cli.administration.options import (
    check_new_name,
    database_url_option,
    existing_user,
    open_database,
    record,
)
from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.table import Column, Row, render, terminal_width
from flux_endpoint.errors import NotFoundError

_COLUMNS = [Column("GROUP", least=8), Column("MEMBERS", right=True), Column("USERS", least=12)]


@click.group()
def group() -> None:
    """Manage groups of users, which an endpoint's `groups:` can name."""


@group.command()
@click.argument("group")
@click.argument("user", nargs=-1, required=True)
@database_url_option
def add(group: str, user: tuple[str, ...], database_url: str | None) -> None:
    """Add each USER to GROUP, which is created if missing."""
    database = open_database(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.write() as connection:
        check_new_name("GROUP", group, users.list_groups(connection))
        for each in user:
            users.join_group(connection, group, existing_user(connection, each))
    database.close()
    record(database_url, "users added to a group", group=group, users=list(user))


@group.command()
@click.argument("group")
@click.argument("user", nargs=-1, required=True)
@database_url_option
def remove(group: str, user: tuple[str, ...], database_url: str | None) -> None:
    """Remove each USER from GROUP; a group without users disappears."""
    database = open_database(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.write() as connection:
        for each in user:
            if not users.leave_group(connection, group, existing_user(connection, each)):
                raise NotFoundError(f"{each} is not in the group {group}")
    database.close()
    record(database_url, "users removed from a group", group=group, users=list(user))


@group.command()
@click.argument("group")
@database_url_option
def delete(group: str, database_url: str | None) -> None:
    """Remove all users from GROUP, which disappears with that."""
    database = open_database(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.write() as connection:
        members = users.list_groups(connection).get(group)
        if members is None:
            raise _unknown(group)
        for each in members:
            users.leave_group(connection, group, existing_user(connection, each))
    database.close()
    record(database_url, "group deleted", group=group, users=members)


@group.command(name="list")
@json_option
@database_url_option
def list_groups(*, as_json: bool, database_url: str | None) -> None:
    """List the groups with their users."""
    database = open_database(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.read() as connection:
        found = users.list_groups(connection)
    database.close()
    if as_json:
        put_json([{"group": name, "users": members} for name, members in found.items()])
    elif not found:
        click.echo("No groups. Create one with: flux-endpoint service group add GROUP USER")
    else:
        rows = [Row([name, str(len(them)), ", ".join(them)]) for name, them in found.items()]
        click.echo(render(_COLUMNS, rows, color=False, width=terminal_width()))


@group.command()
@click.argument("group")
@json_option
@database_url_option
def show(*, group: str, as_json: bool, database_url: str | None) -> None:
    """List the users of GROUP, one a line."""
    database = open_database(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.read() as connection:
        members = users.list_groups(connection).get(group)
    database.close()
    if members is None:
        raise _unknown(group)
    if as_json:
        put_json({"group": group, "users": members})
    else:
        click.echo("\n".join(members))


def _unknown(group: str) -> NotFoundError:
    return NotFoundError(
        f"there is no group {group}: `flux-endpoint service group list` shows those that there are"
    )
