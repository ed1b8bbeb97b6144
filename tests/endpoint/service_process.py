"""The real service as a process of its own, on a database of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from broker_access import session_broker
from databases import create_token
from flux_endpoint.credentials import Credentials

COMMAND = [sys.executable, "-m", "flux_endpoint"]


def run(*arguments: str, fails: bool | None = False, **variables: str) -> str:
    """Run a command; return its output, that on standard error if it is to fail.

    Args:
        arguments: the arguments of `flux-endpoint`.
        fails: whether it is to fail; `None`: it may.
        variables: environment variables, beside those of this process.
    """
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | variables,
    )
    assert fails is None or (done.returncode != 0) == fails, done
    assert "Traceback" not in done.stderr
    return done.stderr if fails else done.stdout


class ServiceProcess:
    """`flux-endpoint service run` on the broker at `amqp_url`.

    Args:
        directory: for its database.
        amqp_url: the broker.
        port: where to listen.
    """

    def __init__(self, directory: Path, amqp_url: str, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._database = directory / "service.db"
        self._env = os.environ | {
            "FLUX_ENDPOINT_HOME": str(directory),
            "FLUX_ENDPOINT_SERVICE_DATABASE_URL": f"sqlite:///{self._database}",
            "FLUX_ENDPOINT_SERVICE_AMQP_URL": amqp_url,
            **session_broker.environment(amqp_url),
        }
        self.credentials = self.new_user("owner")
        self._process: subprocess.Popen[str] | None = None

    def new_user(self, name: str) -> Credentials:
        return Credentials(self.url, create_token(self._database, name), source="a test")

    def start(self) -> None:
        """Start; return when it is ready."""
        self._process = subprocess.Popen(
            [*COMMAND, "service", "run", "--port", str(self._port)],
            env=self._env,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        said: list[str] = []
        for line in self._process.stderr:
            if "service ready" in line:
                return
            said.append(line)
        raise AssertionError("the service ended before it was ready:\n" + "".join(said))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()
            self._process = None
