"""Task groups: their owners, their tasks, and the kinds of queues that get their results."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import submissions, task_groups, tasks


@dataclass(frozen=True)
class Listeners:
    """The kinds of queues that a task group has.

    Attributes:
        plain: whether there is a queue with one result per message.
        bundles: whether there is a queue with several results per message.
    """

    plain: bool
    bundles: bool


_OWNER = sa.select(task_groups.c.owner_id).where(task_groups.c.id == sa.bindparam("group"))


def group_owner(connection: sa.Connection, group_id: str) -> str | None:
    """Return the id of a task group's owner; `None` if there is no such group."""
    return connection.scalar(_OWNER, {"group": group_id})


def add_group(connection: sa.Connection, group_id: str, owner_id: str) -> None:
    """Create a task group. Its results go to no queue until `send_results` is called."""
    connection.execute(
        sa.insert(task_groups).values(
            id=group_id, owner_id=owner_id, created_at=time.time(), plain=False, bundles=False
        )
    )


def send_results(connection: sa.Connection, group_id: str, *, bundles: bool) -> None:
    """Record that a queue of a group gets its results from now on.

    Args:
        connection: a transaction that writes.
        group_id: the group.
        bundles: whether the queue accepts several results in one message.
    """
    wanted = task_groups.c.bundles if bundles else task_groups.c.plain
    connection.execute(
        sa.update(task_groups)
        .where(task_groups.c.id == group_id, ~wanted)
        .values({wanted.name: True})
    )


_LISTENERS = sa.select(task_groups.c.id, task_groups.c.plain, task_groups.c.bundles).where(
    task_groups.c.id.in_(sa.bindparam("ids", expanding=True))
)


def listeners(connection: sa.Connection, ids: Iterable[str]) -> dict[str, Listeners]:
    """Return the kinds of queues that get the results of task groups, by group id."""
    found: dict[str, Listeners] = {}
    for part in chunks(ids):
        rows = connection.execute(_LISTENERS, {"ids": part})
        found.update((row[0], Listeners(*row[1:])) for row in rows)
    return found


def group_tasks(connection: sa.Connection, group_id: str) -> list[str]:
    """Return the ids of a group's tasks in order of submission."""
    query = (
        sa.select(tasks.c.id)
        .join_from(submissions, tasks)
        .where(submissions.c.group_id == group_id)
        .order_by(submissions.c.created_at, submissions.c.id, tasks.c.position)
    )
    return list(connection.scalars(query))


def wants_group_queue(connection: sa.Connection, group_id: str) -> bool:
    """Return whether a submission has requested the queue of a group's official clients."""
    query = sa.exists().where(submissions.c.group_id == group_id, submissions.c.create_queue)
    return bool(connection.scalar(sa.select(query)))
