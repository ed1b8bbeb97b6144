"""What endpoints of another make were given of their tasks that have not ended.

Such an endpoint holds what it takes in memory only. A task waits here until there is room for it;
it is claimed by the service that publishes it, and released once the endpoint's queue has it. It
has been taken when that queue has it no more though nobody consumes, and is left when another run
of the endpoint has begun since.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import deliveries, endpoints, submissions, tasks
from flux_endpoint.service.store.tasks import NewTask

#: Most tasks, and most characters of them, that are claimed at a time.
PAGE_TASKS = 500
PAGE_SIZE = 16 * 2**20

#: Which rows of `tasks` are those of tasks that don't wait here, nor did.
NOT_HELD = ~sa.exists().where(deliveries.c.task_id == tasks.c.id)


@dataclass(frozen=True)
class DeliveryWindow:
    """How much an endpoint may have been given that has not ended; one task always may."""

    tasks: int
    size: int


@dataclass(frozen=True)
class Claimed:
    """A task to publish now."""

    task: NewTask
    submission_id: str


def add(connection: sa.Connection, endpoint_id: str, sizes: Iterable[tuple[str, int]]) -> None:
    """Have tasks wait for their delivery; each comes with its size."""
    rows = [
        {"task_id": task_id, "endpoint_id": endpoint_id, "size": size} for task_id, size in sizes
    ]
    connection.execute(sa.insert(deliveries), rows)


def claim(
    connection: sa.Connection, endpoint_id: str, window: DeliveryWindow, now: float
) -> list[Claimed]:
    """Take the next tasks of an endpoint, as far as there is room; each is taken once."""
    # Two services that look at the same time would both find the same room.
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
        # Its task group's queue exists by then.
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
    """Note that the endpoint's queue has these tasks."""
    _mark(connection, task_ids, released_at=now)


def unclaim(connection: sa.Connection, task_ids: Sequence[str]) -> None:
    """Have tasks wait again: they were not published."""
    _mark(connection, task_ids, claimed_at=None)


def unclaim_older(connection: sa.Connection, than: float, but: Iterable[str]) -> int:
    """Have tasks wait again that a service claimed and, having ended, did not publish.

    Args:
        connection: of a transaction that writes.
        than: claims since then are left alone.
        but: so are the claims on these tasks.
    """
    lost = sa.select(deliveries.c.task_id).where(
        deliveries.c.claimed_at < than, deliveries.c.released_at.is_(None)
    )
    left = set(connection.scalars(lost)).difference(but)
    _mark(connection, list(left), claimed_at=None)
    return len(left)


def released(connection: sa.Connection, endpoint_id: str) -> dict[str, float]:
    """Return which open tasks an endpoint's queue has had, and since when."""
    query = sa.select(deliveries.c.task_id, deliveries.c.released_at).where(
        deliveries.c.endpoint_id == endpoint_id, deliveries.c.released_at.is_not(None)
    )
    return {row.task_id: row.released_at for row in connection.execute(query)}


def claimed(connection: sa.Connection, endpoint_id: str) -> set[str]:
    """Return which tasks an endpoint's queue has had, or has not, or will have in a moment."""
    query = sa.select(deliveries.c.task_id).where(
        deliveries.c.endpoint_id == endpoint_id,
        deliveries.c.claimed_at.is_not(None),
        deliveries.c.released_at.is_(None),
    )
    return set(connection.scalars(query))


def count_claimed(connection: sa.Connection, endpoint_id: str) -> int:
    """Return how many open tasks are, or may be, in an endpoint's queue or with it."""
    query = sa.select(sa.func.count()).where(
        deliveries.c.endpoint_id == endpoint_id, deliveries.c.claimed_at.is_not(None)
    )
    return connection.execute(query).scalar_one()


def take(connection: sa.Connection, task_ids: Iterable[str], now: float) -> None:
    """Note that tasks have been taken."""
    _mark(connection, task_ids, taken_at=now)


def taken(connection: sa.Connection, endpoint_id: str) -> dict[str, float | None]:
    """Return the open tasks that have been taken; when they count as lost, of those left."""
    query = sa.select(deliveries.c.task_id, deliveries.c.lost_at).where(
        deliveries.c.endpoint_id == endpoint_id, deliveries.c.taken_at.is_not(None)
    )
    return {row.task_id: row.lost_at for row in connection.execute(query)}


def keep(connection: sa.Connection, endpoint_id: str) -> None:
    """Note that the run that has taken tasks goes on."""
    _mark_taken(connection, endpoint_id, taken_at=None)


def leave(connection: sa.Connection, endpoint_id: str, lost_at: float) -> None:
    """Note that another run has begun than the one that has taken tasks."""
    _mark_taken(connection, endpoint_id, lost_at=lost_at)


def open_tasks(connection: sa.Connection, endpoint_id: str) -> list[str]:
    """Return all tasks of an endpoint that have not ended."""
    query = sa.select(deliveries.c.task_id).where(deliveries.c.endpoint_id == endpoint_id)
    return list(connection.scalars(query))


def has_open_tasks(connection: sa.Connection, endpoint_id: str) -> bool:
    """Return whether an endpoint has tasks that have not ended."""
    query = sa.select(deliveries.c.task_id).where(deliveries.c.endpoint_id == endpoint_id).limit(1)
    return connection.scalar(query) is not None


def busy_endpoints(connection: sa.Connection) -> list[str]:
    """Return the endpoints with tasks that have not ended."""
    return list(connection.scalars(sa.select(deliveries.c.endpoint_id).distinct()))


def remove(connection: sa.Connection, task_ids: Iterable[str]) -> bool:
    """Forget tasks that have ended; return whether any was known."""
    found = False
    for part in chunks(task_ids):
        done = sa.delete(deliveries).where(deliveries.c.task_id.in_(part))
        found |= connection.execute(done).rowcount > 0
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
