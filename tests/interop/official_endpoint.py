"""The official endpoint as a process of its own in a private home, and what it has started."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from waiting import until

#: Bound of a wait for a foreign program, in seconds.
PATIENCE = 100.0

#: Seconds between two reports; the official least.
PERIOD = 5

# What every Python that user endpoints run does first.
_SITE = Path(__file__).parent / "programs" / "site"

_TEMPLATE = """
engine:
  type: {{ engine | default("ThreadPoolEngine") }}
  max_workers: {{ workers | default(2) }}
"""

# What its user endpoints are started as: one begins its work when nothing holds it up.
_COMMAND = """#!/bin/sh
while [ -e '{held}' ]; do sleep 0.1; done
exec '{command}' "$@"
"""


def official_environment(service_url: str, token: str, home: Path) -> dict[str, str]:
    """Return what docs/interoperability.md tells a user to set."""
    dropped = ("GLOBUS_", "FLUX_", "PMI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "PYTHONPATH"):
        kept.pop(name, None)
    return {
        **kept,
        "HOME": str(home),
        "http_proxy": service_url,
        "GLOBUS_SDK_ENVIRONMENT": "local",
        "GLOBUS_SDK_SERVICE_URL_AUTH": "http://localhost:5000/auth/",
        "GLOBUS_COMPUTE_CLIENT_ID": str(uuid.uuid4()),
        "GLOBUS_COMPUTE_CLIENT_SECRET": token,
    }


class OfficialEndpoint:
    """A multi-user endpoint, `globus-compute-endpoint start`, with a template for user endpoints.

    Args:
        home: where it keeps everything.
        python: an interpreter that has the official packages.
        environment: how they reach the service, and as whom.
        template: what user endpoints run tasks with.
        period: seconds between two reports.
        debug: whether they log all that they do.
    """

    def __init__(
        self,
        home: Path,
        python: str,
        environment: dict[str, str],
        *,
        template: str = _TEMPLATE,
        period: int = PERIOD,
        debug: bool = True,
    ) -> None:
        self._home = home
        self._commands = Path(python).parent
        self._environment = {**environment, "HOME": str(home)}
        self._process: subprocess.Popen[bytes] | None = None
        directory = home / ".globus_compute" / "lab"
        self._directory = directory
        self._command("configure", "--contact-email", "admin@example.org", "lab")
        common = yaml.safe_dump({"heartbeat_period": period, "debug": debug})
        (directory / "config.yaml").write_text(f"{common}email: admin@example.org\n")
        (directory / "user_config_template.yaml.j2").write_text(common + template)
        (directory / "user_config_schema.json").unlink()
        self._held = home / "held"
        command = home / "bin" / "globus-compute-endpoint"
        command.parent.mkdir()
        real = self._commands / "globus-compute-endpoint"
        command.write_text(_COMMAND.format(held=self._held, command=real))
        command.chmod(0o755)
        # Started by root it gives its user endpoints an empty environment, and root's own home.
        path = f"{command.parent}:{self._commands}:{os.environ['PATH']}"
        variables = {
            "HOME": str(home),
            "CWD": str(home),
            "PATH": path,
            "PYTHONPATH": str(_SITE),
        }
        (directory / "user_environment.yaml").write_text(yaml.safe_dump(variables))

    @property
    def id(self) -> str:
        return str(json.loads((self._directory / "endpoint.json").read_text())["endpoint_id"])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it in the foreground; it registers by itself.

        After a crash it refuses to start for a while, as long as somebody might run it elsewhere.
        """
        begun = self._times_begun
        until(lambda: self._begins(begun))

    def _begins(self, begun: int) -> bool:
        self._process = subprocess.Popen(
            [self._commands / "globus-compute-endpoint", "start", "lab"],
            env=self._environment,
            cwd=self._home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # at its end it ends its whole process group
        )
        until(lambda: self._times_begun > begun or self.has_ended())
        return not self.has_ended()

    @property
    def _times_begun(self) -> int:
        log = self._directory / "endpoint.log"
        return log.read_text().count("Core Endpoint begins") if log.exists() else 0

    def stop(self) -> None:
        """Stop it as its operator would."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(PATIENCE)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def user_endpoints(self) -> list[psutil.Process]:
        """The user endpoints that it has started and that run, without what these started."""
        found = []
        for each in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                if each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
        return found

    @contextlib.contextmanager
    def held_up(self) -> Iterator[None]:
        """While this lasts, the user endpoints that it starts don't come to their work."""
        self._held.touch()
        try:
            yield
        finally:
            self._held.unlink()

    def clean_up(self) -> None:
        """End whatever is left of it: all that works in its home."""
        until(self._kill_all)  # one may have started another meanwhile
        if self._process is not None:
            self._process.wait(PATIENCE)

    def _kill_all(self) -> bool:
        """Kill what works in its home; return whether there was nothing."""
        found = False
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # an ended one works nowhere
                if Path(each.cwd()).is_relative_to(self._home):
                    found = True
                    each.kill()
        return not found

    @property
    def said(self) -> str:
        """Its log and those of its user endpoints."""
        return "".join(f"== {path.parent.name}\n{path.read_text()}" for path in self._logs())

    def _logs(self) -> list[Path]:
        return sorted((self._home / ".globus_compute").glob("*/endpoint.log"))

    def has_ended(self) -> bool:
        """Whether it has ended, by whomever."""
        return self._process is not None and self._process.poll() is not None

    def _command(self, *arguments: str) -> None:
        done = subprocess.run(
            [self._commands / "globus-compute-endpoint", *arguments],
            env=self._environment,
            cwd=self._home,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
