"""Routes for the tokens of endpoints."""

from fastapi import APIRouter

from flux_endpoint.protocol.rest import EndpointTokenAnswer
from flux_endpoint.service.context import Service
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.routes.endpoints import EndpointId, owned
from flux_endpoint.service.store import users

router = APIRouter()


@router.post("/v3/endpoints/{endpoint_id}/tokens")
def create(endpoint_id: EndpointId, service: Service, caller: Caller) -> EndpointTokenAnswer:
    """Create a token for an endpoint. Only a few of its newest tokens stay valid."""
    owned(service, endpoint_id, caller)
    with service.database.write() as connection:
        token = users.create_endpoint_token(connection, caller.id, endpoint_id)
    service.audit.did(
        "endpoint token created",
        caller.name,
        endpoint_id=endpoint_id,
        token_id=users.token_id(token),
    )
    return EndpointTokenAnswer(endpoint_id=endpoint_id, token=token)


@router.delete("/v3/endpoints/{endpoint_id}/tokens")
def revoke(endpoint_id: EndpointId, service: Service, caller: Caller) -> dict[str, int]:
    """Revoke all tokens of an endpoint."""
    owned(service, endpoint_id, caller)
    with service.database.write() as connection:
        revoked = users.revoke_endpoint_tokens(connection, [endpoint_id])
    service.audit.did(
        "endpoint tokens revoked", caller.name, endpoint_id=endpoint_id, tokens=revoked
    )
    return {"revoked": revoked}
