"""Administrators' view: users with their limits, and the endpoints and tasks of all users."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from flux_endpoint.protocol.administration import UserDocument, UserEndpoint
from flux_endpoint.service.store import functions as function_store
from flux_endpoint.service.store import retention
from flux_endpoint.service.store.endpoints import OWN_MAKE_KEY, is_online
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import (
    endpoints,
    functions,
    group_members,
    submissions,
    task_groups,
    tasks,
    tokens,
    users,
)
from flux_endpoint.service.store.users import list_tokens

#: Number of endpoints whose reports are in memory at a time.
_PART = 50


@dataclass(frozen=True)
class Usage:
    """How much a user has of what is limited besides unfinished tasks. Some of it takes a scan."""

    functions: int
    function_bytes: int
    task_groups: int
    result_bytes: int


def list_users(connection: sa.Connection, name: str | None = None) -> list[UserDocument]:
    """Return the users by name.

    Args:
        connection: a transaction.
        name: only the user with this name.
    """
    query = sa.select(users).order_by(users.c.name)
    if name is not None:
        query = query.where(users.c.name == name)
    rows = connection.execute(query).all()
    only = rows[0].id if name is not None and rows else None
    used: dict[str, float] = {}
    number: Counter[str] = Counter()
    for token in list_tokens(connection, only):
        number[token.user] += 1
        if token.last_used_at is not None:
            used[token.user] = max(used.get(token.user, 0.0), token.last_used_at)
    groups: dict[str, list[str]] = {}
    members = sa.select(group_members.c.user_id, group_members.c.name)
    for user_id, group in connection.execute(members.order_by(group_members.c.name)):
        groups.setdefault(user_id, []).append(group)
    theirs = sa.select(endpoints.c.owner_id, sa.func.count()).where(
        endpoints.c.deleted_at.is_(None), endpoints.c.parent_id.is_(None)
    )
    owned = {row[0]: row[1] for row in connection.execute(theirs.group_by("owner_id"))}
    return [
        UserDocument(
            user=row.name,
            user_id=row.id,
            created=row.created_at,
            disabled=row.disabled_at,
            last_used=used.get(row.name),
            groups=groups.get(row.id, []),
            tokens=number[row.name],
            endpoints=owned.get(row.id, 0),
            unfinished=row.open_tasks,
            queued_bytes=row.open_bytes,
            limits=row.limits or {},
        )
        for row in rows
    ]


def usage(connection: sa.Connection, user_id: str) -> Usage:
    """Return how much a user has of what is limited."""

    def count(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
        query = sa.select(sa.func.count()).select_from(table)
        return connection.scalar(query.where(table.c.owner_id == user_id, *conditions)) or 0

    size = (
        sa.select(sa.func.sum(retention.RESULT_BYTES))
        .join_from(tasks, submissions)
        .where(submissions.c.owner_id == user_id)
    )
    return Usage(
        functions=count(functions, functions.c.deleted_at.is_(None)),
        function_bytes=function_store.code_bytes(connection, user_id),
        task_groups=count(task_groups),
        result_bytes=int(connection.scalar(size) or 0),
    )


def set_limits(
    connection: sa.Connection, user_id: str, changes: Mapping[str, float | None]
) -> dict[str, float | str]:
    """Set limits of a user; return all that are set for the user now.

    Args:
        connection: a transaction that writes.
        user_id: id of the user.
        changes: values by name; `None`: the user has the service's limit again.
    """
    its = users.c.id == user_id
    known: dict[str, Any] = dict(connection.scalar(sa.select(users.c.limits).where(its)) or {})
    for name, value in changes.items():
        if value is None:
            known.pop(name, None)
        else:  # JSON has no infinity
            known[name] = "infinity" if math.isinf(value) else value
    # The rate is counted anew, so that a debt under an old limit does not block the user.
    values = {"limits": known or None, "rate_left": None, "rate_counted_at": None}
    connection.execute(sa.update(users).where(its).values(values))
    return known


def set_disabled(connection: sa.Connection, user_id: str, *, disabled: bool) -> bool:
    """Disable or enable a user; return whether that is a change.

    Args:
        connection: a transaction that writes.
        user_id: id of the user.
        disabled: whether to refuse all tokens of the user.
    """
    unset = users.c.disabled_at.is_(None)
    change = sa.update(users).where(users.c.id == user_id, unset if disabled else ~unset)
    value = time.time() if disabled else None
    return connection.execute(change.values(disabled_at=value)).rowcount > 0


def delete_user(connection: sa.Connection, user_id: str) -> dict[str, int]:
    """Delete a user with tokens, memberships and unused functions, unless anything depends on them.

    Args:
        connection: a transaction that writes.
        user_id: id of the user.

    Returns:
        What the user still has, by noun; nothing was deleted then.
    """
    # A deleted endpoint stays as long as its cleanup, and tasks that were submitted to it.
    cleaned = endpoints.c.empty_before.is_(None) & ~sa.exists().where(
        submissions.c.endpoint_id == endpoints.c.id
    )
    deleted = endpoints.c.deleted_at.is_not(None)
    of_task = sa.exists().where(tasks.c.function_id == functions.c.id)
    counts = {
        "endpoints": sa.select(endpoints.c.id).where(endpoints.c.owner_id == user_id, ~deleted),
        "deleted endpoints with tasks": sa.select(endpoints.c.id).where(
            endpoints.c.owner_id == user_id, deleted, ~cleaned
        ),
        "tasks": sa.select(tasks.c.id)
        .join_from(tasks, submissions)
        .where(submissions.c.owner_id == user_id),
        "functions with tasks": sa.select(functions.c.id).where(
            functions.c.owner_id == user_id, of_task
        ),
    }
    left = {
        noun: connection.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0
        for noun, query in counts.items()
    }
    if any(left.values()):
        return {noun: number for noun, number in left.items() if number}
    connection.execute(sa.delete(submissions).where(submissions.c.owner_id == user_id))
    connection.execute(sa.delete(tokens).where(tokens.c.user_id == user_id))
    connection.execute(sa.delete(group_members).where(group_members.c.user_id == user_id))
    for table in (task_groups, functions, endpoints):
        connection.execute(sa.delete(table).where(table.c.owner_id == user_id))
    connection.execute(sa.delete(users).where(users.c.id == user_id))
    return {}


def list_all_endpoints(
    connection: sa.Connection,
    *,
    owner: str | None = None,
    after: str | None = None,
    limit: int,
) -> tuple[list[UserEndpoint], str | None]:
    """Return endpoints of all users in the order of owners and names, user endpoints included.

    Args:
        connection: a transaction.
        owner: only endpoints of the user with this name.
        after: id of an endpoint: only those after it.
        limit: the most endpoints.

    Returns:
        The endpoints, and the id of the last if there are more.
    """
    order = (users.c.name, endpoints.c.name, endpoints.c.id)
    query = (
        sa.select(endpoints.c.id)
        .join_from(endpoints, users)
        .where(endpoints.c.deleted_at.is_(None))
        .order_by(*order)
        .limit(limit + 1)
    )
    if owner is not None:
        query = query.where(users.c.name == owner)
    if after is not None:
        its = sa.select(*order).join_from(endpoints, users).where(endpoints.c.id == after)
        place = connection.execute(its).one_or_none()
        if place is not None:
            query = query.where(sa.tuple_(*order) > sa.tuple_(*place))
    ids = list(connection.scalars(query))
    shown = ids[:limit]
    found = [each for part in chunks(shown, _PART) for each in _endpoints(connection, part)]
    return found, shown[-1] if len(ids) > limit else None


def find_endpoint(connection: sa.Connection, endpoint_id: str) -> UserEndpoint | None:
    """Return an endpoint of any user; `None`: there is none, or it is deleted."""
    its = (endpoints.c.id == endpoint_id) & endpoints.c.deleted_at.is_(None)
    if connection.scalar(sa.select(endpoints.c.id).where(its)) is None:
        return None
    return next(_endpoints(connection, [endpoint_id]))


def _endpoints(connection: sa.Connection, ids: Sequence[str]) -> Iterator[UserEndpoint]:
    names = ("id", "name", "display_name", "created_at", "last_seen", "last_report", "public")
    more = ("multi_user", "parent_id", "users", "groups")
    query = (
        sa.select(
            *(endpoints.c[name] for name in (*names, *more)),
            endpoints.c.metadata[OWN_MAKE_KEY].as_string().label("version"),
            users.c.name.label("owner"),
        )
        .join_from(endpoints, users)
        .where(endpoints.c.id.in_(ids))
    )
    now = time.time()
    rows = {row.id: row for row in connection.execute(query)}
    for row in (rows[each] for each in ids):
        yield UserEndpoint(
            endpoint_id=row.id,
            name=row.name,
            display_name=row.display_name,
            owner=row.owner,
            status="online" if is_online(row.last_report, row.last_seen, now) else "offline",
            created=row.created_at,
            last_seen=row.last_seen,
            public=row.public,
            multi_user=row.multi_user,
            parent_id=row.parent_id,
            version=row.version,
            users=row.users or [],
            groups=row.groups or [],
        )


def owners_of(connection: sa.Connection, task_ids: Iterable[str]) -> dict[str, str]:
    """Return the names of the owners of tasks, by task id."""
    found: dict[str, str] = {}
    for part in chunks(task_ids):
        query = (
            sa.select(tasks.c.id, users.c.name)
            .join_from(tasks, submissions)
            .join(users, users.c.id == submissions.c.owner_id)
            .where(tasks.c.id.in_(part))
        )
        found.update((task_id, name) for task_id, name in connection.execute(query))
    return found


def names_of(
    connection: sa.Connection, what: Literal["endpoints", "functions"], ids: Iterable[str]
) -> dict[str, str]:
    """Return the names of endpoints or functions, of deleted ones, too, by id."""
    table = {"endpoints": endpoints, "functions": functions}[what]
    found: dict[str, str] = {}
    for part in chunks(ids):
        query = sa.select(table.c.id, table.c.name).where(table.c.id.in_(part))
        found.update((its_id, name) for its_id, name in connection.execute(query))
    return found


def ids_called(
    connection: sa.Connection, what: Literal["endpoints", "functions"], name: str
) -> list[str]:
    """Return the ids of the endpoints or functions with a name, of deleted ones, too."""
    table = {"endpoints": endpoints, "functions": functions}[what]
    return list(connection.scalars(sa.select(table.c.id).where(table.c.name == name)))
