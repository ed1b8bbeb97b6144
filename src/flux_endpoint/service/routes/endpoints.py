"""Routes to register, read, stop and delete endpoints."""

import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import sqlalchemy as sa
from fastapi import APIRouter, Path

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.messages import EndpointStop, pack
from flux_endpoint.protocol.queues import EndpointQueues, endpoint_queues
from flux_endpoint.protocol.rest import (
    EndpointStatusAnswer,
    EndpointSummary,
    LockAnswer,
    RegisterEndpoint,
    UuidText,
)
from flux_endpoint.service import topology
from flux_endpoint.service.commands import command_endpoint
from flux_endpoint.service.context import Service, ServiceContext
from flux_endpoint.service.disclosure import shown_metadata, shown_report
from flux_endpoint.service.errors import broker_unavailable, endpoint_unknown, invalid_field
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.users import User

router = APIRouter()

EndpointId = Annotated[UuidText, Path()]

#: Maximum size of an endpoint's metadata in bytes of JSON; with configuration, template and schema.
MAX_METADATA = 256 * 2**10
#: Seconds for which a lock refuses registrations.
LOCK_SECONDS = 30


@router.post("/v3/endpoints")
def register(request: RegisterEndpoint, service: Service, caller: Caller) -> EndpointQueues:
    """Register a new endpoint. Its queues exist when this returns."""
    return _register(service, str(uuid4()), caller, request, "endpoint registered")


@router.put("/v3/endpoints/{endpoint_id}")
def register_again(
    endpoint_id: EndpointId, request: RegisterEndpoint, service: Service, caller: Caller
) -> EndpointQueues:
    """Register an endpoint that already has an id, perhaps from a lost database."""
    with service.database.read() as connection:
        known = endpoints.get_endpoint(connection, endpoint_id, deleted=True)
    if known is not None and known.owner_id != caller.id:
        raise _not_permitted(endpoint_id)
    if known is not None and known.parent_id is not None:
        raise ServiceError(
            f"endpoint {endpoint_id} can't be registered: endpoint {known.parent_id} starts it",
            http_status=409,
            code="ENDPOINT_NOT_PERMITTED",
            field="endpoint_id",
        )
    now = time.time()
    if known is not None and known.locked_until is not None and known.locked_until > now:
        raise ServiceError(
            f"endpoint {endpoint_id} is locked for {known.locked_until - now:.0f} more seconds",
            http_status=423,
            code="ENDPOINT_LOCKED",
            field="endpoint_id",
        )
    answer = _register(service, endpoint_id, caller, request, "endpoint registered again")
    if known is not None:
        service.official.registered_again(known, service.settings.publish_timeout)
    return answer


@router.get("/v2/endpoints")
def read_all(
    service: Service, caller: Caller, role: Literal["owner", "any"] = "owner"
) -> list[EndpointSummary]:
    """List the caller's endpoints; with `role=any`, also others that the caller may see."""
    with service.database.read() as connection:
        found = endpoints.list_endpoints(connection, caller, public=role == "any")
    return [
        EndpointSummary(
            uuid=each.id, name=each.name, display_name=each.display_name, owner=each.owner
        )
        for each in found
    ]


@router.get("/v2/endpoints/{endpoint_id}")
def read(endpoint_id: EndpointId, service: Service, caller: Caller) -> dict[str, Any]:
    """Return an endpoint's metadata; for an endpoint of another user, only the public part."""
    endpoint = _visible(service, endpoint_id, caller)
    return {
        **shown_metadata(endpoint, caller),
        "uuid": endpoint.id,
        "name": endpoint.name,
        "display_name": endpoint.display_name,
        "owner": endpoint.owner,
        "public": endpoint.public,
        "multi_user": endpoint.multi_user,
    }


@router.get("/v2/endpoints/{endpoint_id}/status")
def status(endpoint_id: EndpointId, service: Service, caller: Caller) -> EndpointStatusAnswer:
    """Return whether an endpoint is online, and its last report."""
    endpoint = _visible(service, endpoint_id, caller)
    return EndpointStatusAnswer(
        status=endpoint.status,
        details=shown_report(endpoint, caller),
        last_seen=endpoint.last_seen,
    )


@router.delete("/v2/endpoints/{endpoint_id}")
def delete(endpoint_id: EndpointId, service: Service, caller: Caller) -> dict[str, str]:
    """Delete an endpoint. It accepts no more submissions, and its open tasks fail."""
    owned(service, endpoint_id, caller)
    with service.database.write() as connection:
        endpoints.delete_endpoint(connection, endpoint_id, time.time())
    service.audit.did("endpoint deleted", caller.name, endpoint_id=endpoint_id)
    service.official.deleted()
    service.changes.endpoints_changed()
    service.access.revoked()
    return {"endpoint_id": endpoint_id}


@router.post("/v3/endpoints/{endpoint_id}/lock")
def lock(endpoint_id: EndpointId, service: Service, caller: Caller) -> LockAnswer:
    """Stop an endpoint, and refuse its registration for a while so that it stays stopped."""
    endpoint = owned(service, endpoint_id, caller)
    now = time.time()
    until = now + LOCK_SECONDS
    with service.database.write() as connection:
        endpoints.lock_endpoint(connection, endpoint_id, until)
    service.audit.did("endpoint stopped", caller.name, endpoint_id=endpoint_id)
    if endpoint.is_own_make:
        # The command expires with the lock, so it does not stop a later start.
        message = EndpointStop(endpoint_id=UUID(endpoint_id))
        command_endpoint(service, endpoint_id, pack(message), expiration=LOCK_SECONDS)
        stops = True
    else:
        stops = service.official.stop(endpoint, service.settings.publish_timeout)
    return LockAnswer(
        endpoint_id=endpoint_id,
        lock_expiration_timestamp=datetime.fromtimestamp(until, UTC)
        .replace(tzinfo=None)
        .isoformat(timespec="seconds"),
        delivered=endpoint.is_online(now) and stops,
    )


@router.get("/v3/endpoints/{endpoint_id}/allowed_functions")
def allowed_functions(endpoint_id: EndpointId, service: Service, caller: Caller) -> dict[str, Any]:
    """Return the functions that an endpoint runs, if they are restricted."""
    allowed = _visible(service, endpoint_id, caller).allowed_functions
    return {
        "endpoint_id": endpoint_id,
        "restricted": allowed is not None,
        "functions": allowed or [],
    }


def usable(connection: sa.Connection, endpoint_id: str, caller: User) -> Endpoint:
    """Return an endpoint where a user may run tasks.

    Args:
        connection: a transaction.
        endpoint_id: the endpoint.
        caller: the user.

    Raises:
        ServiceError: 404, there is no such endpoint, or the user must not see it; 403, the user may
            see it but not run tasks there.
    """
    endpoint = visible(connection, endpoint_id, caller)
    if not endpoints.may_run(connection, endpoint, caller):
        raise ServiceError(
            f"endpoint {endpoint_id} is visible to everybody, but runs only tasks of its owner, "
            f"{endpoint.owner}, and of the users: and groups: in its config.yaml, which do not "
            f"include {caller.name}",
            http_status=403,
            code="ENDPOINT_NOT_PERMITTED",
            field="endpoint_id",
        )
    return endpoint


def visible(connection: sa.Connection, endpoint_id: str, caller: User) -> Endpoint:
    """Return an endpoint that a user may see.

    Args:
        connection: a transaction.
        endpoint_id: the endpoint.
        caller: the user.

    Raises:
        ServiceError: 404, there is no such endpoint, or the user must not see it.
    """
    endpoint = endpoints.get_endpoint(connection, endpoint_id)
    if (
        endpoint is None
        or endpoint.parent_id is not None  # users see the multi-user endpoint instead
        or not endpoints.may_see(connection, endpoint, caller)
    ):
        raise endpoint_unknown(endpoint_id)
    return endpoint


def _visible(service: ServiceContext, endpoint_id: str, caller: User) -> Endpoint:
    with service.database.read() as connection:
        return visible(connection, endpoint_id, caller)


def owned(service: ServiceContext, endpoint_id: str, caller: User) -> Endpoint:
    """Return an endpoint that a user owns.

    Args:
        service: the service.
        endpoint_id: the endpoint.
        caller: the user.

    Raises:
        ServiceError: 404, there is no such endpoint, or the user must not see it; 403, it belongs
            to another user.
    """
    endpoint = _visible(service, endpoint_id, caller)
    if endpoint.owner_id != caller.id:
        raise _not_permitted(endpoint_id)
    return endpoint


def _not_permitted(endpoint_id: str) -> ServiceError:
    return ServiceError(
        f"endpoint {endpoint_id} belongs to another user",
        http_status=403,
        code="ENDPOINT_NOT_PERMITTED",
        field="endpoint_id",
    )


def _register(
    service: ServiceContext, endpoint_id: str, caller: User, request: RegisterEndpoint, what: str
) -> EndpointQueues:
    for field in ("endpoint_name", "display_name"):
        if "\0" in (getattr(request, field) or ""):
            raise invalid_field(field, "must not contain NUL")
    if (
        len(json.dumps(request.metadata, ensure_ascii=False).encode("utf-8", "replace"))
        > MAX_METADATA
    ):
        raise invalid_field("metadata", f"is larger than {MAX_METADATA} bytes of JSON")
    if request.high_assurance:
        raise invalid_field("high_assurance", "this service does not support it: leave it out")
    if request.authentication_policy:
        raise invalid_field(
            "authentication_policy",
            "this service does not support it: leave it out; an endpoint's users: and groups: say "
            "who may run tasks there",
        )
    with service.database.read() as connection:
        if endpoints.get_endpoint(connection, endpoint_id) is None:
            service.quotas.check_endpoints(connection, caller.id)
    # The queues are declared first: clients retry after a 503, which must leave no record.
    own_queues = topology.of_endpoint(endpoint_id)
    if not service.publisher.declare(own_queues, service.settings.publish_timeout):
        raise broker_unavailable()
    with service.database.write() as connection:
        is_put = endpoints.put_endpoint(
            connection, endpoint_id, caller.id, request, caller.token_id
        )
    if not is_put:  # another user has registered the same id in the meantime
        raise _not_permitted(endpoint_id)
    service.changes.endpoints_changed()
    service.audit.did(
        what,
        caller.name,
        endpoint_id=endpoint_id,
        name=request.endpoint_name,
        by="the endpoint" if caller.endpoint_id else None,
        public=request.public,
        users=request.users,
        groups=request.groups,
        allowed_functions=request.allowed_functions and len(request.allowed_functions),
    )
    return endpoint_queues(
        endpoint_id, service.access.urls.of_endpoint(endpoint_id, caller.token_id)
    )
