"""The open tasks of official endpoints, and how far each has been delivered.

An official endpoint keeps tasks in memory only, so the service tracks each one:

- A task *waits* until there is room for it.
- It is *claimed* by the service that publishes it.
- It is *released* once the endpoint's queue has it.
- It is *taken* if it is not in that queue any more, and the queue has no consumer.
- It is *left* if it was taken and a new run of the endpoint has started since.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import deliveries, endpoints, submissions, tasks
from flux_endpoint.service.store.tasks import NewTask

#: Maximum number of tasks, and of their characters, that are claimed at a time.
PAGE_TASKS = 500
PAGE_SIZE = 16 * 2**20

#: Condition on `tasks`: the task has no row here.
NOT_HELD = ~sa.exists().where(deliveries.c.task_id == tasks.c.id)


@dataclass(frozen=True)
class DeliveryWindow:
    """Limits of the open tasks that an endpoint is given. One task is always permitted.

    Attributes:
        tasks: maximum number of tasks.
        size: maximum size in characters of functions and arguments.
    """

    tasks: int
    size: int


@dataclass(frozen=True)
class Claimed:
    """A task to publish now."""

    task: NewTask
    submission_id: str


def add(connection: sa.Connection, endpoint_id: str, sizes: Iterable[tuple[str, int]]) -> None:
    """Add waiting tasks.

    Args:
        connection: a transaction that writes.
        endpoint_id: the endpoint that runs them.
        sizes: pairs of task id and size in characters.
    """
    rows = [
        {"task_id": task_id, "endpoint_id": endpoint_id, "size": size} for task_id, size in sizes
    ]
    connection.execute(sa.insert(deliveries), rows)


def claim(
    connection: sa.Connection, endpoint_id: str, window: DeliveryWindow, now: float
) -> list[Claimed]:
    """Claim the next waiting tasks of an endpoint, as many as there is room for.

    Args:
        connection: a transaction that writes.
        endpoint_id: the endpoint.
        window: the limits of the endpoint.
        now: seconds since the epoch.

    Returns:
        The claimed tasks; a task is claimed by one service only.
    """
    # The lock keeps two services from filling the same room twice.
    connection.execute(
        sa.select(endpoints.c.id).where(endpoints.c.id == endpoint_id).with_for_update()
    )
    mine = deliveries.c.endpoint_id == endpoint_id
    count, size = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(deliveries.c.size), 0)).where(
            mine, deliveries.c.claimed_at.is_not(None)
        )
    ).one()
    room = min(window.tasks - count, PAGE_TASKS)
    left = min(window.size - size, PAGE_SIZE)
    if room <= 0 or (left <= 0 and count):
        return []
    query = (
        sa.select(
            tasks.c.id, tasks.c.function_id, tasks.c.payload, tasks.c.submission_id,
            deliveries.c.size,
        )
        .join_from(deliveries, tasks)
        .join(submissions)
        # A published submission: the queue of its task group exists.
        .where(mine, deliveries.c.claimed_at.is_(None), submissions.c.published_at.is_not(None))
        .order_by(deliveries.c.task_id)
        .limit(room)
    )  # fmt: skip
    claimed: list[Claimed] = []
    with connection.execute(query) as rows:
        for row in rows:
            left -= row.size
            if left < 0 and (claimed or count):
                break
            new = NewTask(row.id, row.function_id, row.payload.decode())
            claimed.append(Claimed(new, row.submission_id))
    _mark(connection, [each.task.id for each in claimed], claimed_at=now)
    return claimed


def any_waits(connection: sa.Connection, endpoint_id: str) -> bool:
    """Return whether tasks of an endpoint wait to be claimed."""
    query = (
        sa.select(deliveries.c.task_id)
        .where(deliveries.c.endpoint_id == endpoint_id, deliveries.c.claimed_at.is_(None))
        .limit(1)
    )
    return connection.scalar(query) is not None


def release(connection: sa.Connection, task_ids: Sequence[str], now: float) -> None:
    """Record that the endpoint's queue has these tasks.

    Args:
        connection: a transaction that writes.
        task_ids: the tasks.
        now: seconds since the epoch.
    """
    _mark(connection, task_ids, released_at=now)


def unclaim(connection: sa.Connection, task_ids: Sequence[str]) -> None:
    """Make unpublished tasks wait again."""
    _mark(connection, task_ids, claimed_at=None)


def unclaim_older(connection: sa.Connection, claimed_before: float, kept: Iterable[str]) -> int:
    """Make tasks wait again if their service stopped before it published them.

    Args:
        connection: a transaction that writes.
        claimed_before: only claims before this time (seconds since the epoch).
        kept: tasks whose claims stay.

    Returns:
        The number of tasks.
    """
    lost = sa.select(deliveries.c.task_id).where(
        deliveries.c.claimed_at < claimed_before, deliveries.c.released_at.is_(None)
    )
    left = set(connection.scalars(lost)).difference(kept)
    _mark(connection, list(left), claimed_at=None)
    return len(left)


def released(connection: sa.Connection, endpoint_id: str) -> dict[str, float]:
    """Return the open tasks that were released to an endpoint's queue, and when."""
    query = sa.select(deliveries.c.task_id, deliveries.c.released_at).where(
        deliveries.c.endpoint_id == endpoint_id, deliveries.c.released_at.is_not(None)
    )
    return {row.task_id: row.released_at for row in connection.execute(query)}


def claimed(connection: sa.Connection, endpoint_id: str) -> set[str]:
    """Return the tasks that are being published: an endpoint's queue may have them or not."""
    query = sa.select(deliveries.c.task_id).where(
        deliveries.c.endpoint_id == endpoint_id,
        deliveries.c.claimed_at.is_not(None),
        deliveries.c.released_at.is_(None),
    )
    return set(connection.scalars(query))


def count_claimed(connection: sa.Connection, endpoint_id: str) -> int:
    """Return the number of open tasks that the endpoint or its queue has, or may have."""
    query = sa.select(sa.func.count()).where(
        deliveries.c.endpoint_id == endpoint_id, deliveries.c.claimed_at.is_not(None)
    )
    return connection.execute(query).scalar_one()


def take(connection: sa.Connection, task_ids: Iterable[str], now: float) -> None:
    """Record that tasks have been taken.

    Args:
        connection: a transaction that writes.
        task_ids: the tasks.
        now: seconds since the epoch.
    """
    _mark(connection, task_ids, taken_at=now)


def taken(connection: sa.Connection, endpoint_id: str) -> dict[str, float | None]:
    """Return the open tasks that have been taken, and when they count as lost.

    The time is `None` unless the task is left.
    """
    query = sa.select(deliveries.c.task_id, deliveries.c.lost_at).where(
        deliveries.c.endpoint_id == endpoint_id, deliveries.c.taken_at.is_not(None)
    )
    return {row.task_id: row.lost_at for row in connection.execute(query)}


def keep(connection: sa.Connection, endpoint_id: str) -> None:
    """Record that the run that has taken tasks is still running: they are not taken any more."""
    _mark_taken(connection, endpoint_id, taken_at=None)


def leave(connection: sa.Connection, endpoint_id: str, lost_at: float) -> None:
    """Mark taken tasks as left: a new run has started.

    Args:
        connection: a transaction that writes.
        endpoint_id: the endpoint.
        lost_at: when the tasks count as lost (seconds since the epoch).
    """
    _mark_taken(connection, endpoint_id, lost_at=lost_at)


def open_tasks(connection: sa.Connection, endpoint_id: str) -> list[str]:
    """Return all open tasks of an endpoint."""
    query = sa.select(deliveries.c.task_id).where(deliveries.c.endpoint_id == endpoint_id)
    return list(connection.scalars(query))


def has_open_tasks(connection: sa.Connection, endpoint_id: str) -> bool:
    """Return whether an endpoint has open tasks."""
    query = sa.select(deliveries.c.task_id).where(deliveries.c.endpoint_id == endpoint_id).limit(1)
    return connection.scalar(query) is not None


def busy_endpoints(connection: sa.Connection) -> list[str]:
    """Return the endpoints with open tasks."""
    return list(connection.scalars(sa.select(deliveries.c.endpoint_id).distinct()))


_REMOVE = sa.delete(deliveries).where(deliveries.c.task_id.in_(sa.bindparam("ids", expanding=True)))


def remove(connection: sa.Connection, task_ids: Iterable[str]) -> bool:
    """Remove tasks that have ended; return whether there were any."""
    found = False
    for part in chunks(task_ids):
        found |= connection.execute(_REMOVE, {"ids": part}).rowcount > 0
    return found


def _mark(connection: sa.Connection, task_ids: Iterable[str], **values: float | None) -> None:
    for part in chunks(task_ids):
        statement = sa.update(deliveries).where(deliveries.c.task_id.in_(part)).values(**values)
        connection.execute(statement)


def _mark_taken(connection: sa.Connection, endpoint_id: str, **values: float | None) -> None:
    statement = sa.update(deliveries).where(
        deliveries.c.endpoint_id == endpoint_id,
        deliveries.c.taken_at.is_not(None),
        deliveries.c.lost_at.is_(None),
    )
    connection.execute(statement.values(**values))
