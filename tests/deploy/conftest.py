"""The files of `deploy/`, as the tests want them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from deploy_files import DEPLOY, read_variables, variables_of


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """The compose file, variables not yet filled in."""
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


@pytest.fixture(scope="session")
def tls() -> dict[str, Any]:
    """The compose file that is put on top for TLS."""
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.tls.yaml").read_text())
    return content


@pytest.fixture(scope="session")
def answers() -> dict[str, str]:
    """deploy/.env as somebody filled it in: example.env, and a value where it has none."""
    example = read_variables(DEPLOY / "example.env")
    return {name: value or f"{name.lower().replace('_', '')}1" for name, value in example.items()}


@pytest.fixture(scope="session")
def service_variables() -> set[str]:
    """The environment variables of `flux-endpoint service run`."""
    return variables_of("service", "run")
