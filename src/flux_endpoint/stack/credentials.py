"""`credentials.json`: the URL of the stack's service, and the token of its only user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from flux_endpoint.credentials import STACK_KEY
from flux_endpoint.errors import ConfigurationError, ServiceUnreachableError
from flux_endpoint.http_library import httpx
from flux_endpoint.paths import write_private

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TIMEOUT = 10.0


def load_credentials(file: Path) -> dict[str, Any]:
    """Return the content of `file`; {} if it does not exist.

    Raises:
        ConfigurationError: it is not a JSON object, or belongs to a service on another machine.
    """
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigurationError(f"{file} is not JSON ({error}); remove it") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} must hold a JSON object; remove it")
    url = str(content.get("service_url") or "")
    if url and urlsplit(url).hostname not in _LOOPBACK:
        raise ConfigurationError(
            f"{file} is for the service at {url}, and a stack of its own would replace it: "
            "set FLUX_ENDPOINT_HOME to another directory, or remove the file"
        )
    return content


def save_credentials(file: Path, service_url: str, token: str) -> None:
    """Write `file`, readable by its owner only, while the stack next to it runs.

    Args:
        file: `credentials.json` of the stack's home.
        service_url: the service's URL; empty: the stack does not run.
        token: the token of the stack's user; kept for the next start.
    """
    content = {"service_url": service_url, "token": token, STACK_KEY: "stack/lock"}
    write_private(file, json.dumps(content, indent=1) + "\n")


def is_valid(service_url: str, token: str) -> bool:
    """Ask the service whether it knows `token`."""
    response = _get(f"{service_url}/v2/endpoints/{uuid4()}/status", token)
    return response.status_code != httpx.codes.UNAUTHORIZED


def endpoint_status(service_url: str, token: str, endpoint_id: str) -> dict[str, Any]:
    """Return the service's answer on an endpoint's status; {} if there is none."""
    response = _get(f"{service_url}/v2/endpoints/{endpoint_id}/status", token)
    if response.status_code != httpx.codes.OK:
        return {}
    content = response.json()
    return content if isinstance(content, dict) else {}


def _get(url: str, token: str) -> httpx.Response:
    try:
        # trust_env: requests to this machine must not go to a proxy.
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(url, headers=headers, timeout=_TIMEOUT, trust_env=False)
    except httpx.HTTPError as error:
        raise ServiceUnreachableError(f"the service does not answer at {url}: {error}") from None
