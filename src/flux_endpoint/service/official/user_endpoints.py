"""Which endpoint runs a submission: a multi-user endpoint has its user endpoints do so."""

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

#: Characters of JSON. A multi-user endpoint hands all of it over through a pipe of 64 KiB, with the
#: configuration that it makes of it.
MAX_CONFIG = 16 * 1024

_ATTEMPTS = 3


def running_endpoint(
    database: Database,
    endpoint: Endpoint,
    user: User,
    config: Mapping[str, Any] | None,
    runtime: Mapping[str, Any] | None,
) -> str:
    """Return the id of the endpoint that runs a user's tasks, and create it if need be.

    Args:
        database: which endpoints there are.
        endpoint: what the user submits to.
        user: who.
        config: the user's values for the template of a multi-user endpoint's configuration.
        runtime: what the user's program says of itself.

    Raises:
        ServiceError: 422, `config` is too large, or the endpoint has no template.
    """
    config = config or {}
    if not endpoint.starts_user_endpoints:
        if config:
            raise invalid_field(
                "user_endpoint_config",
                f"endpoint {endpoint.id} has no configuration template for it to fill in: leave it "
                "out, what a task needs goes into its resource_specification",
            )
        return endpoint.id
    if len(json.dumps(config)) > MAX_CONFIG:
        raise invalid_field(
            "user_endpoint_config", f"is larger than {MAX_CONFIG} characters: pass files by path"
        )
    runtime = runtime or {}
    if len(json.dumps(runtime)) > MAX_CONFIG:
        runtime = {}  # nothing depends on it but what is shown to people
    with database.read() as connection:
        found = find_user_endpoint(connection, endpoint.id, user.id, config, runtime)
    attempt = 0
    while found is None:
        attempt += 1
        try:
            with database.write() as connection:
                found = put_user_endpoint(connection, endpoint.id, user.id, config, runtime)
        except IntegrityError:  # another request has just created it
            if attempt == _ATTEMPTS:
                raise
    return found
