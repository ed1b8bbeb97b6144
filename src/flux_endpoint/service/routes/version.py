"""Route to read the API's version; it needs no token."""

from fastapi import APIRouter

from flux_endpoint.protocol.rest import API_VERSION, VersionAnswer

router = APIRouter()


@router.get("/v2/version")
async def version(service: str | None = None) -> str | VersionAnswer:
    """Return the API's version; with `service=all`, also the oldest supported clients."""
    return VersionAnswer() if service else API_VERSION
