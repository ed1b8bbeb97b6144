"""A person at a terminal: a home, and the commands that are typed there, as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "flux_endpoint"]
#: Seconds after which something that should happen counts as not happening.
PATIENCE = 60


class Terminal:
    """`$FLUX_ENDPOINT_HOME`, and nothing else of ours in the environment."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
        self.environment = {**kept, "FLUX_ENDPOINT_HOME": str(home), **environment}

    def run(
        self, *arguments: str, status: int = 0, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, which must end with `status` and without a traceback."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == status, (done.args, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr, done
        return done

    def out(self, *arguments: str, **options: Any) -> str:
        """Run a command; return what it says on standard output."""
        return self.run(*arguments, **options).stdout

    def err(self, *arguments: str, status: int, **options: Any) -> str:
        """Run a command that fails; return what it says on standard error."""
        return self.run(*arguments, status=status, **options).stderr


@pytest.fixture
def bare(tmp_path: Path) -> Terminal:
    """A terminal of somebody who has nothing yet."""
    return Terminal(tmp_path / "home")
