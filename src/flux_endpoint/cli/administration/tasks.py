"""`flux-endpoint service task …`: the tasks of all users."""

from __future__ import annotations

from uuid import UUID

import click

from flux_endpoint.cli.administration.options import (
    database_url_option,
    existing_user,
    open_database,
)
from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.table import View, color_option, view_options
from flux_endpoint.cli.task import show_record
from flux_endpoint.cli.tasks import (
    COLUMNS,
    DEFAULT_COLUMNS,
    document,
    put_tasks,
    state_option,
    states_of,
)
from flux_endpoint.errors import NotFoundError
from flux_endpoint.protocol.administration import UserTask, UserTaskRecord
from flux_endpoint.protocol.operations import MAX_LISTED, ListTasks


@click.group()
def task() -> None:
    """See the tasks of all users."""


@task.command(name="list")
@click.option("--user", metavar="NAME", help="Only tasks of this user.")
@click.option("--endpoint", type=click.UUID, metavar="ID", help="Only tasks at this endpoint.")
@click.option("--group", type=click.UUID, metavar="ID", help="Only tasks of this task group.")
@state_option
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_LISTED),
    default=50,
    show_default=True,
    help="The most tasks to list, the newest first.",
)
@view_options(COLUMNS)
@database_url_option
def list_tasks(
    *,
    user: str | None,
    endpoint: UUID | None,
    group: UUID | None,
    states: tuple[str, ...],
    limit: int,
    view: View,
    database_url: str | None,
) -> None:
    """List the tasks of all users, the newest first."""
    database = open_database(database_url)
    from flux_endpoint.service.store import administration  # noqa: PLC0415 - with the extra
    from flux_endpoint.service.task_lists import find_tasks  # noqa: PLC0415 - as above

    query = ListTasks(
        endpoint_id=None if endpoint is None else str(endpoint),
        task_group_id=None if group is None else str(group),
        state=sorted(states_of(states)),
        limit=limit,
    )
    with database.read() as connection:
        owner_id = None if user is None else existing_user(connection, user)
        answer = find_tasks(connection, owner_id, query)
        owners = administration.owners_of(connection, [each.task_id for each in answer.tasks])
        names = administration.names_of(
            connection, "endpoints", {each.endpoint_id for each in answer.tasks}
        )
    database.close()
    found = [UserTask.of(each, owners[each.task_id]) for each in answer.tasks]
    more = answer.next is not None
    if view.as_json:
        put_json({"tasks": [document(each) for each in found], "more": more})
    elif not found:
        click.echo("No such tasks.")
    else:
        put_tasks(view, found, names, view.chosen or DEFAULT_COLUMNS)
        if more:
            click.echo(f"There are more: --limit {2 * limit} shows the next.", err=True)


@task.command()
@click.argument("id", type=click.UUID)
@json_option
@color_option
@database_url_option
def show(
    *,
    id: UUID,  # noqa: A002 - the argument's shown name
    as_json: bool,
    color: bool,
    database_url: str | None,
) -> None:
    """Show a task of any user, without what it has printed."""
    database = open_database(database_url)
    from flux_endpoint.service.store import administration, listing  # noqa: PLC0415 - as above

    task_id = str(id)
    with database.read() as connection:
        record = listing.task_record(connection, None, task_id)
        owner = administration.owners_of(connection, [task_id]).get(task_id)
    database.close()
    if record is None or owner is None:
        raise NotFoundError(
            f"there is no task {task_id}, or it was removed: `flux-endpoint service task list` "
            "shows those that there are"
        )
    shown = UserTaskRecord.of(record, owner)
    if as_json:
        put_json(document(shown))
        return
    click.echo(f"{'User':<10} {owner}")
    show_record(shown, color=color)
