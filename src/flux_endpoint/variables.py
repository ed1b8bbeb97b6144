"""Environment variables with credentials. Processes that run task code must not inherit them."""

from __future__ import annotations

from collections.abc import Mapping

#: Prefixes of their names. The service's URL is not secret, but belongs to the token.
_CREDENTIALS = (
    "FLUX_ENDPOINT_TOKEN",
    "FLUX_ENDPOINT_SERVICE_",
    "GLOBUS_COMPUTE_CLIENT_SECRET",
    "GLOBUS_CLI_CLIENT_SECRET",
    "FUNCX_SDK_CLIENT_SECRET",
)
_ADDRESS = "FLUX_ENDPOINT_SERVICE_URL"


def holds_credentials(name: str) -> bool:
    """Return whether a variable of this name holds credentials."""
    return name.startswith(_CREDENTIALS)


def without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of an environment without the variables that hold credentials."""
    return {name: value for name, value in environment.items() if not holds_credentials(name)}


def has_secrets(environment: Mapping[str, str]) -> bool:
    """Return whether an environment has a token or password; the service's URL is neither."""
    return any(
        value and holds_credentials(name) and name != _ADDRESS
        for name, value in environment.items()
    )
