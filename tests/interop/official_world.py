"""Our service and our endpoint, each a process of its own, and the official SDK beside them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.endpoint.service_process import COMMAND, ServiceProcess
from tests.interop.official_endpoint import official_environment

#: Bound of a wait for a foreign program, in seconds.
PATIENCE = 100
#: The same for all that one does, each step of which has its own bound.
PROGRAM = 250


class OfficialWorld:
    """One service, one endpoint of ours, and programs that use the official SDK on them.

    Args:
        directory: for everything that they write.
        amqp_url: the broker, a virtual host of its own.
        port: where the service listens.
        python: an interpreter that has the official packages.
        flux_uri: a Flux instance for the endpoint; `None`: the embedded executor.
    """

    def __init__(
        self, directory: Path, amqp_url: str, port: int, python: str, flux_uri: str | None
    ) -> None:
        self.directory = directory
        self.flux_uri = flux_uri
        self.python = python
        self.service = ServiceProcess(directory, amqp_url, port)
        token = self.service.credentials.token
        home = directory / "user"
        home.mkdir()
        self.environment = official_environment(self.service.url, token, home)
        self._home = directory / "site"
        self._own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLUX_", "PMI_", "GLOBUS_"))
        } | {
            "FLUX_ENDPOINT_HOME": str(self._home),
            "FLUX_ENDPOINT_SERVICE_URL": self.service.url,
            "FLUX_ENDPOINT_TOKEN": token,
            **({"FLUX_URI": flux_uri} if flux_uri else {}),
        }

    def start(self) -> None:
        """Start service and endpoint; return when both are ready."""
        self.service.start()
        self._command("configure", "lab")
        config = self._home / "endpoints" / "lab" / "config.yaml"
        engine = {"type": "FluxEngine", "local_nodes": 2, "local_cores_per_node": 2, "max_nodes": 1}
        who = {"public": True, "users": ["eve"]}
        config.write_text(yaml.safe_dump({"display_name": "Lab", "engine": engine, **who}))
        self._command("start", "lab", "--detach")

    def stop(self) -> None:
        try:
            self._command("stop", "lab")
        finally:
            self.service.stop()

    def _command(self, *arguments: str) -> None:
        command = [*COMMAND, *arguments]
        done = subprocess.run(
            command, env=self._own, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout

    @property
    def endpoint_id(self) -> str:
        text = (self._home / "endpoints" / "lab" / "endpoint.json").read_text()
        return str(json.loads(text)["endpoint_id"])

    def become(self, user: str) -> None:
        """Let programs that are started from now on be those of another user."""
        home = self.directory / user
        home.mkdir()
        token = self.service.new_user(user).token
        self.environment = official_environment(self.service.url, token, home)

    def started(self, program: Path, **order: Any) -> subprocess.Popen[str]:
        """Start a program of a user of the official SDK; `order` is its argument, as JSON."""
        order = {"endpoint_id": self.endpoint_id, **order}
        return subprocess.Popen(
            [self.python, str(program), json.dumps(order)],
            env=self.environment,
            cwd=self.environment["HOME"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, program: Path, **order: Any) -> Mapping[str, Any]:
        """Run such a program to its end; return the JSON object in its last line."""
        with self.started(program, **order) as process:
            try:
                out, err = process.communicate(timeout=PROGRAM)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == 0, f"{out}\n{err}"
        answer: Mapping[str, Any] = {**json.loads(out.splitlines()[-1]), "stderr": err}
        return answer
