"""Finds an endpoint by its id, its name on this machine, or its name at the service."""

from __future__ import annotations

import json
from uuid import UUID

from flux_endpoint import paths
from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.ids import UuidLike
from flux_endpoint.errors import ConfigurationError


def find_endpoint(value: UuidLike, api: ServiceApi, what: str) -> UUID:
    """Return the id of an endpoint.

    The service is asked only for names that no endpoint on this machine has.

    Args:
        value: its id or its name.
        api: the service.
        what: the name of `value` in an error.

    Raises:
        ValueError: no endpoint, or more than one, has the name; the text lists the candidates.
        ServiceError: the service refused the request.
        ServiceUnreachableError: the service had to be asked, and can't be reached.
    """
    if isinstance(value, UUID):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a UUID, or the name of an endpoint, got {value!r}")  # noqa: TRY004
    try:
        return UUID(value)
    except ValueError:
        pass
    return _of_this_machine(value, api.url) or _of_service(value, api, what)


def _of_this_machine(name: str, service_url: str) -> UUID | None:
    """Return the id of an endpoint on this machine that is registered with this service."""
    try:
        file = paths.home() / "endpoints" / name / "endpoint.json"
        identity = json.loads(file.read_text(encoding="utf-8"))
        return UUID(identity["endpoint_id"]) if identity["service_url"] == service_url else None
    except (ConfigurationError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _of_service(name: str, api: ServiceApi, what: str) -> UUID:
    # The user's own endpoints first: those of other users may have the same name.
    for role in ("owner", "any"):
        known = api.endpoints(role)
        found = [each for each in known if name in {each.get("name"), each.get("display_name")}]
        if len(found) == 1:
            return UUID(found[0]["uuid"])
    if found:
        ids = ", ".join(f"{each['uuid']} (of {each['owner']})" for each in found)
        raise ValueError(f"{what}: {len(found)} endpoints are called {name!r}, use an id: {ids}")
    names = ", ".join(sorted(str(each.get("name")) for each in known)) or "none"
    raise ValueError(
        f"{what} must be a UUID, or the name of an endpoint, got {name!r}: no endpoint has "
        f"this name, neither on this machine nor at {api.url}, which has: {names}"
    )
