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
from flux_endpoint.errors import NotFoundError


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


@group.command(name="list")
@database_url_option
def list_groups(database_url: str | None) -> None:
    """List the groups with their users."""
    database = open_database(database_url)
    from flux_endpoint.service.store import users  # noqa: PLC0415 - only with the extra

    with database.read() as connection:
        found = users.list_groups(connection)
    database.close()
    for name, members in found.items():
        click.echo(f"{name}: {', '.join(members)}")
