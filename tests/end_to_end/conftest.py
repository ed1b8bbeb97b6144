"""A whole stack, brought up as a person would: once on the embedded executor, once inside Flux."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

import pytest

from foreground import Process


@dataclass(frozen=True)
class Stack:
    """A running stack and how to talk to it."""

    home: Path
    environment: dict[str, str]
    executor: str

    @property
    def credentials(self) -> dict[str, str]:
        return json.loads((self.home / "credentials.json").read_text())

    @property
    def endpoint_id(self) -> str:
        text = (self.home / "endpoints" / "local" / "endpoint.json").read_text()
        return json.loads(text)["endpoint_id"]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flux_endpoint", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a script as a user would: with nothing configured but the state directory."""
        return subprocess.run(
            [sys.executable, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


def _environment(home: Path, flux_uri: str | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
    if flux_uri is not None:
        kept["FLUX_URI"] = flux_uri
    return {**kept, "FLUX_ENDPOINT_HOME": str(home)}


# Not for the session: its workers would hold a node of the Flux instance that other tests share.
# `TOGETHER` of the main conftest keeps the package in one process.
@pytest.fixture(scope="package", params=["local", pytest.param("flux", marks=pytest.mark.flux)])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    flux_uri = request.getfixturevalue("flux_uri") if request.param == "flux" else None
    home = tmp_path_factory.mktemp(f"home-{request.param}")
    stack = Stack(home, _environment(home, flux_uri), request.param)
    # In the foreground: it ends with this process, in whatever way that ends.
    command = [sys.executable, "-m", "flux_endpoint", "up"]
    with Process(command, env=stack.environment, stdout=PIPE, text=True) as up:
        assert up.stdout is not None
        said = []
        for line in up.stdout:
            said.append(line)
            if line.rstrip().endswith("ends it."):  # its last word when all is up
                break
        else:
            pytest.fail(f"the stack did not come up:\n{''.join(said)}")
        yield stack
        up.terminate()
        up.stdout.read()
        assert up.wait(timeout=60) == 0


@pytest.fixture
def home(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """The stack, with this process configured to use it."""
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(stack.home))
    monkeypatch.delenv("FLUX_ENDPOINT_SERVICE_URL", raising=False)
    monkeypatch.delenv("FLUX_ENDPOINT_TOKEN", raising=False)
    return stack
