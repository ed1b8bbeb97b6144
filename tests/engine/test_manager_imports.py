"""A manager is started wherever workers are to be: it imports no more than it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["pydantic", "asyncio", "ssl", "importlib.metadata", "httpx"])
def test_a_manager_starts_without(package: str) -> None:
    program = f"import sys, flux_endpoint.engine.workers.manager; print({package!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
