"""Environment variables with credentials, which no process that runs task code inherits."""

from __future__ import annotations

from collections.abc import Mapping

#: Prefixes of names. The service's URL is not a secret, but accompanies the token.
_CREDENTIALS = (
    "FLUX_ENDPOINT_TOKEN",
    "FLUX_ENDPOINT_SERVICE_",
    "GLOBUS_COMPUTE_CLIENT_SECRET",
    "GLOBUS_CLI_CLIENT_SECRET",
    "FUNCX_SDK_CLIENT_SECRET",
)
_ADDRESS = "FLUX_ENDPOINT_SERVICE_URL"


def holds_credentials(name: str) -> bool:
    """Return whether a variable of that name has credentials."""
    return name.startswith(_CREDENTIALS)


def without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without credentials."""
    return {name: value for name, value in environment.items() if not holds_credentials(name)}


def has_secrets(environment: Mapping[str, str]) -> bool:
    """Return whether an environment has a token or password."""
    return any(
        value and holds_credentials(name) and name != _ADDRESS
        for name, value in environment.items()
    )
