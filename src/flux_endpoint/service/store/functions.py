"""Registered functions."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from flux_endpoint.protocol.rest import RegisterFunction
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import functions

#: Precision (s) of the last use of a function, so that most uses need no write.
USED_TO = 86_400.0


#: Bytes that a function counts in addition to its code, description and metadata. They limit the
#: number of small functions.
ROW_BYTES = 1024


@dataclass(frozen=True)
class Code:
    """The part of a function that a task's message carries."""

    text: str
    #: Name of the function; empty: it is not sent to the endpoint.
    name: str = ""


@dataclass(frozen=True)
class Function:
    """The part of a function that a submission needs."""

    owner_id: str
    public: bool
    code: Code
    #: Seconds since the epoch of its last recorded use; `None`: never.
    used_at: float | None = None

    def use_is_due(self, now: float) -> bool:
        """Return whether a use at `now` (seconds since the epoch) must be recorded."""
        return self.used_at is None or self.used_at <= now - USED_TO


def add_function(
    connection: sa.Connection, owner_id: str, request: RegisterFunction, code: str
) -> str:
    """Store a function; return its id.

    Args:
        connection: a transaction that writes.
        owner_id: id of its owner.
        request: its description.
        code: its packed code.
    """
    function_id = str(uuid4())
    connection.execute(
        sa.insert(functions).values(
            id=function_id,
            owner_id=owner_id,
            name=request.function_name,
            code=code.encode(),
            public=request.public,
            description=None if request.description is None else request.description.encode(),
            meta=request.meta,
            created_at=time.time(),
        )
    )
    return function_id


def code_bytes(connection: sa.Connection, owner_id: str) -> int:
    """Return the bytes of a user's functions, including deleted ones that are still kept."""
    size = (
        ROW_BYTES
        + sa.func.length(functions.c.code)
        + sa.func.coalesce(sa.func.length(functions.c.description), 0)
        + sa.func.coalesce(sa.func.length(sa.cast(functions.c.meta, sa.Text)), 0)
    )
    query = sa.select(sa.func.sum(size)).where(functions.c.owner_id == owner_id)
    return int(connection.scalar(query) or 0)


def get_function(connection: sa.Connection, function_id: str) -> sa.Row[Any] | None:
    """Return the row of a function; `None` if there is none or it is deleted."""
    query = sa.select(functions).where(
        functions.c.id == function_id, functions.c.deleted_at.is_(None)
    )
    return connection.execute(query).one_or_none()


_FOUND = sa.select(
    functions.c.id,
    functions.c.owner_id,
    functions.c.public,
    functions.c.code,
    functions.c.name,
    functions.c.used_at,
).where(functions.c.id.in_(sa.bindparam("ids", expanding=True)), functions.c.deleted_at.is_(None))


def find_functions(connection: sa.Connection, ids: Iterable[str]) -> dict[str, Function]:
    """Return the existing functions among `ids`, by id."""
    found: dict[str, Function] = {}
    for part in chunks(ids):
        rows = connection.execute(_FOUND, {"ids": part})
        for function_id, owner_id, public, code, name, used_at in rows:
            found[function_id] = Function(owner_id, public, Code(code.decode(), name), used_at)
    return found


def function_code(connection: sa.Connection, ids: Iterable[str]) -> dict[str, Code]:
    """Return the code of functions by id, including deleted ones."""
    found: dict[str, Code] = {}
    for part in chunks(ids):
        query = sa.select(functions.c.id, functions.c.code, functions.c.name).where(
            functions.c.id.in_(part)
        )
        rows = connection.execute(query)
        found.update((row.id, Code(row.code.decode(), row.name)) for row in rows)
    return found


def note_use(connection: sa.Connection, ids: Iterable[str], now: float) -> None:
    """Record the use of functions, unless a use within the last day is recorded.

    Args:
        connection: a transaction that writes.
        ids: ids of functions.
        now: seconds since the epoch.
    """
    for part in chunks(ids):
        long_ago = functions.c.used_at.is_(None) | (functions.c.used_at <= now - USED_TO)
        used = sa.update(functions).where(functions.c.id.in_(part), long_ago)
        connection.execute(used.values(used_at=now))


def delete_function(connection: sa.Connection, function_id: str) -> None:
    """Mark a function as deleted; tasks that use it still run."""
    connection.execute(
        sa.update(functions).where(functions.c.id == function_id).values(deleted_at=time.time())
    )
