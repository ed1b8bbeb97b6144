"""Counts the records that are due for removal, without removing any."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from flux_endpoint.service.store import retention
from flux_endpoint.service.store.tables import (
    dependencies,
    functions,
    submissions,
    task_groups,
    tasks,
)

_SIZE = retention.RESULT_BYTES
_NEEDED = sa.exists().where(dependencies.c.needs_id == tasks.c.id)


@dataclass(frozen=True)
class Due:
    """Numbers of records that a removal would remove now.

    Attributes:
        tasks: tasks that ended too long ago.
        bytes: bytes of their results and output.
        beyond_limit: tasks whose results exceed their user's limit.
        beyond_bytes: bytes of these results.
        task_groups: task groups without tasks.
        functions: functions that were not used for long, or deleted.
    """

    tasks: int
    bytes: int
    beyond_limit: int
    beyond_bytes: int
    task_groups: int
    functions: int


def count(
    connection: sa.Connection, *, ended: float, arrived: float, unused: float, user_bytes: float
) -> Due:
    """Return what is due. Times are in seconds since the epoch.

    Args:
        connection: a transaction.
        ended: tasks that ended until this time are removed.
        arrived: results that arrived until this time may exceed their user's limit.
        unused: functions that were last used until this time are removed.
        user_bytes: maximum bytes of results of each user for whom none is set.
    """
    own = retention.own_result_limits(connection)
    is_due = (tasks.c.completed_at <= ended) & ~_NEEDED
    stays = sa.or_(tasks.c.completed_at.is_(None), tasks.c.completed_at > ended, _NEEDED)
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_SIZE), 0)).where(is_due)
    old, old_bytes = connection.execute(query).one()
    beyond, beyond_bytes = 0, 0
    if retention.stored_bytes(connection) > min([user_bytes, *own.values()]):
        beyond, beyond_bytes = _beyond(connection, stays, arrived, user_bytes, own)
    has_tasks = sa.exists().where(tasks.c.submission_id == submissions.c.id, stays)
    used_group = sa.exists().where(
        submissions.c.group_id == task_groups.c.id,
        (submissions.c.created_at > ended) | has_tasks,
    )
    groups = sa.select(sa.func.count()).where(task_groups.c.created_at <= ended, ~used_group)
    last_use = sa.func.coalesce(functions.c.used_at, functions.c.created_at)
    used_function = sa.exists().where(tasks.c.function_id == functions.c.id, stays)
    codes = sa.select(sa.func.count()).where(
        (last_use <= unused) | (functions.c.deleted_at <= ended), ~used_function
    )
    return Due(
        tasks=old,
        bytes=int(old_bytes),
        beyond_limit=beyond,
        beyond_bytes=beyond_bytes,
        task_groups=connection.scalar(groups) or 0,
        functions=connection.scalar(codes) or 0,
    )


def _beyond(
    connection: sa.Connection,
    stays: sa.ColumnElement[bool],
    arrived: float,
    user_bytes: float,
    own: Mapping[str, float],
) -> tuple[int, int]:
    """Return the number and bytes of the oldest results that exceed their user's limit."""
    has_arrived = tasks.c.completed_at <= arrived, stays
    sizes = (
        sa.select(submissions.c.owner_id, sa.func.sum(_SIZE))
        .join_from(tasks, submissions)
        .where(*has_arrived)
        .group_by(submissions.c.owner_id)
    )
    count, size = 0, 0
    for owner_id, stored in connection.execute(sizes).all():
        most = own.get(owner_id, user_bytes)
        over = stored - most
        if over <= 0 or math.isinf(most):
            continue
        oldest = (
            sa.select(_SIZE)
            .join_from(tasks, submissions)
            .where(*has_arrived, ~_NEEDED, submissions.c.owner_id == owner_id)
            .order_by(submissions.c.id, tasks.c.position)
            .execution_options(yield_per=1000)
        )
        with connection.execute(oldest) as rows:
            for (length,) in rows:
                count, size, over = count + 1, size + length, over - length
                if over <= 0:
                    break
    return count, size
