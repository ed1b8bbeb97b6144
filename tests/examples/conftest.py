"""A live stack, and what a user runs on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE

import pytest

from foreground import Process

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Stack:
    """A running stack, and how a user reaches it."""

    environment: dict[str, str]
    service_url: str = ""
    token: str = field(default="", repr=False)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an example."""
        return self.python(EXAMPLES / script, *arguments)

    def python(
        self, program: Path, *arguments: str, directory: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with nothing configured but the state directory."""
        return subprocess.run(
            [sys.executable, str(program), *arguments],
            env=self.environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def printed(self, script: str, *arguments: str) -> str:
        """Return what an example prints."""
        done = self.run(script, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


def outside_environment(home: Path) -> dict[str, str]:
    """Return the environment of a user who has only a state directory."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
    return {**kept, "FLUX_ENDPOINT_HOME": str(home)}


# `TOGETHER` of the main conftest keeps the package in one process.
@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("home")
    environment = outside_environment(home)
    command = [sys.executable, "-m", "flux_endpoint"]
    subprocess.run(
        [*command, "configure", "local"], env=environment, check=True, capture_output=True
    )
    config = home / "endpoints" / "local" / "config.yaml"
    config.write_text("engine: {type: FluxEngine, executor: local, local_nodes: 2}\n")
    with Process([*command, "up"], env=environment, stdout=PIPE, text=True) as up:
        assert up.stdout is not None
        said = []
        for line in up.stdout:
            said.append(line)
            if line.rstrip().endswith("ends it."):  # its last word when all is up
                break
        else:
            pytest.fail("".join(said))
        endpoint = json.loads((home / "endpoints" / "local" / "endpoint.json").read_text())
        credentials = json.loads((home / "credentials.json").read_text())
        yield Stack(
            {**environment, "FLUX_ENDPOINT_ID": endpoint["endpoint_id"]},
            credentials["service_url"],
            credentials["token"],
        )
        up.terminate()
        up.stdout.read()
