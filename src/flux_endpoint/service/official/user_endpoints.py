"""Selects the endpoint that runs a submission: for a multi-user endpoint, a user endpoint."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import IntegrityError

from flux_endpoint.service.errors import invalid_field
from flux_endpoint.service.official.store.user_endpoints import (
    find_user_endpoint,
    put_user_endpoint,
)
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.users import User

#: Maximum size in characters of JSON. A multi-user endpoint passes it to the user endpoint through
#: a pipe of 64 KiB, together with the rendered configuration.
MAX_CONFIG = 16 * 1024

_ATTEMPTS = 3


def running_endpoint(
    database: Database,
    endpoint: Endpoint,
    user: User,
    config: Mapping[str, Any] | None,
    runtime: Mapping[str, Any] | None,
) -> str:
    """See `OfficialEndpoints.running_endpoint`."""
    config = config or {}
    if not endpoint.starts_user_endpoints:
        if config:
            raise invalid_field(
                "user_endpoint_config",
                f"endpoint {endpoint.id} has no configuration template: leave it out, and "
                "request resources with the resource_specification",
            )
        return endpoint.id
    if len(json.dumps(config)) > MAX_CONFIG:
        raise invalid_field(
            "user_endpoint_config", f"is larger than {MAX_CONFIG} characters: pass files by path"
        )
    runtime = runtime or {}
    if len(json.dumps(runtime)) > MAX_CONFIG:
        runtime = {}  # it is for display only
    with database.read() as connection:
        found = find_user_endpoint(connection, endpoint, user.id, config, runtime)
    attempt = 0
    while found is None:
        attempt += 1
        try:
            with database.write() as connection:
                found = put_user_endpoint(connection, endpoint, user.id, config, runtime)
        except IntegrityError:  # another request has just created it
            if attempt == _ATTEMPTS:
                raise
    return found
