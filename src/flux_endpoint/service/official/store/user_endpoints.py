"""The user endpoints of multi-user endpoints: one for each user and configuration."""

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.tables import deliveries, endpoints


def find_user_endpoint(
    connection: sa.Connection,
    parent: Endpoint,
    owner_id: str,
    config: Mapping[str, Any],
    runtime: Mapping[str, Any],
) -> str | None:
    """Return the id of a user endpoint that `put_user_endpoint` would not change, or `None`.

    Args:
        connection: a transaction.
        parent: the multi-user endpoint.
        owner_id: the user.
        config: the user's values for the configuration template.
        runtime: the client's description of its own environment.
    """
    query = sa.select(endpoints.c.id, endpoints.c.user_runtime, endpoints.c.metadata).where(
        _is(parent.id, owner_id, config), endpoints.c.deleted_at.is_(None)
    )
    row = connection.execute(query).one_or_none()
    if row is None or (row.user_runtime or {}) != runtime:
        return None
    return row.id if row[2] == parent.metadata_of_user_endpoints else None


def put_user_endpoint(
    connection: sa.Connection,
    parent: Endpoint,
    owner_id: str,
    config: Mapping[str, Any],
    runtime: Mapping[str, Any],
) -> str:
    """Create a user endpoint, or update it; return its id.

    Args:
        connection: a transaction that writes.
        parent: the multi-user endpoint.
        owner_id: the user.
        config: the user's values for the configuration template.
        runtime: the client's description of its own environment.

    Raises:
        IntegrityError: another request has created it at the same time.
    """
    query = sa.select(endpoints.c.id).where(_is(parent.id, owner_id, config))
    metadata = parent.metadata_of_user_endpoints
    user_endpoint_id: str | None = connection.scalar(query)
    if user_endpoint_id is not None:
        connection.execute(
            sa.update(endpoints)
            .where(endpoints.c.id == user_endpoint_id)
            .values(user_runtime=runtime, metadata=metadata, deleted_at=None)
        )
        return user_endpoint_id
    new_id = str(uuid4())
    connection.execute(
        sa.insert(endpoints).values(
            id=new_id,
            owner_id=owner_id,
            # Its name on the host that runs it, and the name of its directory there.
            name=f"uep.{parent.id}.{new_id}",
            public=False,
            multi_user=False,
            metadata=metadata,
            created_at=time.time(),
            parent_id=parent.id,
            config_hash=_hash(config),
            user_config=config,
            user_runtime=runtime,
        )
    )
    return new_id


def user_endpoints_of(connection: sa.Connection, parent_id: str) -> list[str]:
    """Return the ids of a multi-user endpoint's user endpoints."""
    query = sa.select(endpoints.c.id).where(
        endpoints.c.parent_id == parent_id, endpoints.c.deleted_at.is_(None)
    )
    return list(connection.scalars(query))


def waiting_and_running(connection: sa.Connection, parent_id: str) -> tuple[int, int]:
    """Return the numbers of open tasks and of running user endpoints of a multi-user endpoint."""
    theirs = endpoints.c.parent_id == parent_id
    waiting = sa.select(sa.func.count()).select_from(deliveries).join(endpoints).where(theirs)
    running = sa.select(sa.func.count()).where(theirs, endpoints.c.run.is_not(None))
    return connection.scalar(waiting) or 0, connection.scalar(running) or 0


def _is(parent_id: str, owner_id: str, config: Mapping[str, Any]) -> sa.ColumnElement[bool]:
    return sa.and_(
        endpoints.c.parent_id == parent_id,
        endpoints.c.owner_id == owner_id,
        endpoints.c.config_hash == _hash(config),
    )


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
