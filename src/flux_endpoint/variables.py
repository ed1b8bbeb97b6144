"""Environment variables that hold credentials: nothing that runs a task's code inherits them."""

from __future__ import annotations

from collections.abc import Mapping

#: Beginnings of names. Where the service is, is no secret, and goes with the token.
_CREDENTIALS = (
    "FLUX_ENDPOINT_TOKEN",
    "FLUX_ENDPOINT_SERVICE_",
    "GLOBUS_COMPUTE_CLIENT_SECRET",
    "GLOBUS_CLI_CLIENT_SECRET",
    "FUNCX_SDK_CLIENT_SECRET",
)
_ADDRESS = "FLUX_ENDPOINT_SERVICE_URL"


def holds_credentials(name: str) -> bool:
    """Return whether a variable of that name belongs to credentials."""
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
