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

#: Seconds to which the last use of a function is known: not each use has to write.
USED_TO = 86_400.0


#: What a function counts besides code, description and metadata: so there are not too many rows.
ROW_BYTES = 1024


@dataclass(frozen=True)
class Code:
    """What a task's message has of its function."""

    text: str
    #: Empty: not for its endpoint.
    name: str = ""


@dataclass(frozen=True)
class Function:
    """What a submission needs of a function."""

    owner_id: str
    public: bool
    code: Code


def add_function(
    connection: sa.Connection, owner_id: str, request: RegisterFunction, code: str
) -> str:
    """Store a function with its packed `code`; return its id."""
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
    """Return how many bytes a user's functions take, with deleted ones that are still kept."""
    size = (
        ROW_BYTES
        + sa.func.length(functions.c.code)
        + sa.func.coalesce(sa.func.length(functions.c.description), 0)
        + sa.func.coalesce(sa.func.length(sa.cast(functions.c.meta, sa.Text)), 0)
    )
    query = sa.select(sa.func.sum(size)).where(functions.c.owner_id == owner_id)
    return int(connection.scalar(query) or 0)


def get_function(connection: sa.Connection, function_id: str) -> sa.Row[Any] | None:
    """Return the row of a function that was not deleted."""
    query = sa.select(functions).where(
        functions.c.id == function_id, functions.c.deleted_at.is_(None)
    )
    return connection.execute(query).one_or_none()


def find_functions(connection: sa.Connection, ids: Iterable[str]) -> dict[str, Function]:
    """Return those of the functions `ids` that exist."""
    found: dict[str, Function] = {}
    for part in chunks(ids):
        query = sa.select(
            functions.c.id,
            functions.c.owner_id,
            functions.c.public,
            functions.c.code,
            functions.c.name,
        ).where(functions.c.id.in_(part), functions.c.deleted_at.is_(None))
        for function_id, owner_id, public, code, name in connection.execute(query):
            found[function_id] = Function(owner_id, public, Code(code.decode(), name))
    return found


def function_code(connection: sa.Connection, ids: Iterable[str]) -> dict[str, Code]:
    """Return the packed code of the functions `ids`, deleted ones included."""
    found: dict[str, Code] = {}
    for part in chunks(ids):
        query = sa.select(functions.c.id, functions.c.code, functions.c.name).where(
            functions.c.id.in_(part)
        )
        rows = connection.execute(query)
        found.update((row.id, Code(row.code.decode(), row.name)) for row in rows)
    return found


def note_use(connection: sa.Connection, ids: Iterable[str], now: float) -> None:
    """Note that functions are used, unless that was noted within a day."""
    for part in chunks(ids):
        long_ago = functions.c.used_at.is_(None) | (functions.c.used_at <= now - USED_TO)
        used = sa.update(functions).where(functions.c.id.in_(part), long_ago)
        connection.execute(used.values(used_at=now))


def delete_function(connection: sa.Connection, function_id: str) -> None:
    """Hide a function; the tasks that use it still run."""
    connection.execute(
        sa.update(functions).where(functions.c.id == function_id).values(deleted_at=time.time())
    )
