"""`flux-endpoint service endpoint …`: the endpoints of all users."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import UUID

import click

from flux_endpoint.cli.administration.options import (
    database_url_option,
    existing_user,
    open_database,
)
from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.table import (
    Column,
    Row,
    View,
    printable,
    shown_age,
    shown_moment,
    view_options,
)
from flux_endpoint.errors import NotFoundError
from flux_endpoint.protocol.operations import MAX_LISTED

if TYPE_CHECKING:
    from flux_endpoint.protocol.administration import UserEndpoint

_COLUMNS = {
    "name": Column("NAME", least=8),
    "owner": Column("OWNER", least=8),
    "status": Column("STATUS"),
    "seen": Column("SEEN", right=True, goes=1),
    "kind": Column("KIND", goes=4),
    "open": Column("OPEN TO", least=8, goes=5),
    "version": Column("RELEASE", least=8, goes=6),
    "created": Column("CREATED", right=True, goes=7),
    "id": Column("ID", least=8, goes=3),
}


@click.group()
def endpoint() -> None:
    """See the endpoints of all users."""


@endpoint.command(name="list")
@click.option("--user", metavar="NAME", help="Only endpoints of this user.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=MAX_LISTED,
    show_default=True,
    help="The most endpoints to list.",
)
@view_options(_COLUMNS)
@database_url_option
def list_endpoints(
    *,
    user: str | None,
    limit: int,
    view: View,
    database_url: str | None,
) -> None:
    """List the endpoints of all users by owner and name, user endpoints included."""
    database = open_database(database_url)
    from flux_endpoint.service.store import administration  # noqa: PLC0415 - with the extra

    with database.read() as connection:
        if user is not None:
            existing_user(connection, user)
        found, last = administration.list_all_endpoints(connection, owner=user, limit=limit)
    database.close()
    if view.as_json:
        documents = [each.model_dump(mode="json") for each in found]
        put_json({"endpoints": documents, "more": last is not None})
    elif not found:
        click.echo("No such endpoints.")
    else:
        now = time.time()
        rows = [_row(each, now) for each in found]
        view.put(_COLUMNS, rows)
        if last is not None:
            click.echo(f"There are more: --limit {2 * limit} shows the next.", err=True)


def _row(found: UserEndpoint, now: float) -> Row:
    cells = [
        found.name,
        found.owner,
        found.status,
        "-" if found.last_seen is None else shown_age(now - found.last_seen),
        _kind(found),
        _open_to(found) or "-",
        found.version or "-",
        shown_age(now - found.created),
        found.endpoint_id,
    ]
    return Row(cells, "good" if found.status == "online" else "bad")


def _kind(found: UserEndpoint) -> str:
    if found.parent_id is not None:
        return "user endpoint"
    return "multi-user" if found.multi_user else "endpoint"


def _open_to(found: UserEndpoint) -> str:
    groups = [f"group {each}" for each in found.groups]
    seen = ["all see it"] if found.public else []
    return ", ".join(["all users" if each == "*" else each for each in found.users] + groups + seen)


@endpoint.command()
@click.argument("id", type=click.UUID)
@json_option
@database_url_option
def show(
    *,
    id: UUID,  # noqa: A002 - the argument's shown name
    as_json: bool,
    database_url: str | None,
) -> None:
    """Show an endpoint of any user."""
    database = open_database(database_url)
    from flux_endpoint.service.store import administration  # noqa: PLC0415 - with the extra

    with database.read() as connection:
        found = administration.find_endpoint(connection, str(id))
    database.close()
    if found is None:
        raise NotFoundError(
            f"there is no endpoint {id}: `flux-endpoint service endpoint list` shows those that "
            "there are"
        )
    if as_json:
        put_json(found.model_dump(mode="json"))
        return
    for title, text in _lines(found, time.time()):
        click.echo(f"{title:<10} {printable(text)}")


def _lines(found: UserEndpoint, now: float) -> Iterator[tuple[str, str]]:
    yield "Endpoint", f"{found.name} ({found.endpoint_id})"
    if found.display_name and found.display_name != found.name:
        yield "Shown as", found.display_name
    yield "Owner", found.owner
    seen = "never reported"
    if found.last_seen is not None:
        seen = f"reported {shown_age(now - found.last_seen)} ago ({shown_moment(found.last_seen)})"
    yield "Status", f"{found.status}, {seen}"
    yield "Kind", _kind(found) + (f" of {found.parent_id}" if found.parent_id else "")
    yield "Open to", _open_to(found) or "its owner"
    yield "Release", found.version or "of another make"
    yield "Created", shown_moment(found.created)
    yield "Tasks", f"flux-endpoint service task list --endpoint {found.endpoint_id}"
