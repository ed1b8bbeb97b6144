"""A person at a terminal: a home, and the commands that are typed there, as processes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from flux_endpoint import Client, Executor, ShellFunction
from flux_endpoint.stack.broker_files import NodeIdentity, node_environment
from flux_endpoint.stack.installation import find_rabbitmq
from foreground import Process
from waiting import until

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
        self, *arguments: str, status: int | None = 0, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, which must end with `status` (`None`: any) and without a traceback."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert status in {None, done.returncode}, (
            done.args,
            done.returncode,
            done.stdout,
            done.stderr,
        )
        assert "Traceback" not in done.stdout + done.stderr, done
        return done

    def out(self, *arguments: str, **options: Any) -> str:
        """Run a command; return what it says on standard output."""
        return self.run(*arguments, **options).stdout

    def shown(self, *arguments: str, columns: int = 80) -> str:
        """Run a command on a terminal with so many columns; return what it shows."""
        ours, its = pty.openpty()
        environment = {**self.environment, "COLUMNS": str(columns), "NO_COLOR": "1"}
        with subprocess.Popen([*COMMAND, *arguments], env=environment, stdout=its) as command:
            os.close(its)
            parts = []
            with suppress(OSError):  # the end of a terminal is an error
                while part := os.read(ours, 1 << 16):
                    parts.append(part)
            os.close(ours)
            assert command.wait(PATIENCE) == 0
        return b"".join(parts).decode().replace("\r\n", "\n")

    def err(self, *arguments: str, status: int, **options: Any) -> str:
        """Run a command that fails; return what it says on standard error."""
        return self.run(*arguments, status=status, **options).stderr


@pytest.fixture
def bare(tmp_path: Path) -> Terminal:
    """A terminal of somebody who has nothing yet."""
    return Terminal(tmp_path / "home")


class StackTerminal(Terminal):
    """A terminal on the machine of a running stack."""

    @property
    def credentials(self) -> dict[str, str]:
        return json.loads((self.home / "credentials.json").read_text())

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on the stack's node; return what it prints."""
        directory = self.home / "stack" / "broker"
        identity = NodeIdentity(**json.loads((directory / "node.json").read_text()))
        return subprocess.run(
            [find_rabbitmq().ctl, "--quiet", *arguments],
            env=node_environment(directory, identity),
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        ).stdout

    def endpoint_id(self, name: str = "local") -> str:
        text = (self.home / "endpoints" / name / "endpoint.json").read_text()
        return json.loads(text)["endpoint_id"]

    def user(self, name: str, *options: str) -> dict[str, str]:
        """Return the environment of another user of the service; options are of the token."""
        database = f"sqlite:///{self.home / 'stack' / 'service.db'}"
        made = self.out(
            "service",
            "token",
            "create",
            name,
            *options,
            FLUX_ENDPOINT_SERVICE_DATABASE_URL=database,
        )
        return {
            "FLUX_ENDPOINT_SERVICE_URL": self.credentials["service_url"],
            "FLUX_ENDPOINT_TOKEN": made.split()[-1],
        }

    def json(self, *arguments: str, **options: Any) -> Any:
        """Run a command with `--json`; return what it says."""
        return json.loads(self.out(*arguments, "--json", **options))

    def start(self, name: str, **environment: str) -> None:
        """Start an endpoint; return when the service has heard of it, too."""
        self.run("start", name, "--detach", **environment)
        self.await_status(name, "online")

    def stop(self, name: str) -> None:
        """Stop an endpoint; return when the service has heard of that, too."""
        self.run("stop", name)
        self.await_status(name, "offline")

    def await_status(self, name: str, status: str) -> None:
        """Wait until the service says so of an endpoint; asked without a command's start."""
        client = Client(self.credentials["service_url"], self.credentials["token"])
        endpoint = self.endpoint_id(name)
        until(lambda: client.get_endpoint_status(endpoint)["status"] == status)

    @contextmanager
    def executor(self, name: str = "local", **arguments: Any) -> Iterator[Executor]:
        """An executor of this process; what is still open at the end is cancelled."""
        url, token = self.credentials["service_url"], self.credentials["token"]
        client = Client(url, token)
        executor = Executor(self.endpoint_id(name), client=client, **arguments)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackTerminal]:
    """Broker, service and an endpoint on the embedded executor: one for all tests."""
    terminal = StackTerminal(tmp_path_factory.mktemp("cli") / "home")
    configure(terminal, "local")
    # In the foreground: it ends with this process, in whatever way that ends.
    with Process(
        [*COMMAND, "up"], env=terminal.environment, stdout=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        said = []
        for line in up.stdout:
            said.append(line)
            if line.rstrip().endswith("ends it."):
                break
        else:
            pytest.fail(f"the stack did not come up:\n{''.join(said)}")
        yield terminal
        up.terminate()
        up.stdout.read()
        assert up.wait(timeout=PATIENCE) == 0


@pytest.fixture
def executor(stack: StackTerminal) -> Iterator[Executor]:
    """An executor with a task group of its own."""
    with stack.executor(task_group_id=uuid.uuid4()) as executor:
        yield executor


@pytest.fixture(scope="session")
def in_flux(stack: StackTerminal, flux_uri: str) -> Iterator[StackTerminal]:
    """The same, with a second endpoint, `fluxed`, whose jobs are those of a Flux instance."""
    # It shares the instance with other tests: it must hold no node for longer than it needs it.
    configure(stack, "fluxed", engine={"executor": "flux", "min_nodes": 0, "idle_timeout": 1})
    stack.start("fluxed", FLUX_URI=flux_uri)
    yield stack
    stack.run("stop", "fluxed")


def configure(terminal: Terminal, name: str, **settings: Any) -> None:
    """Make an endpoint that tells how it is often, but can be late on a busy machine.

    It counts as offline after three periods without a report.
    """
    terminal.run("configure", name)
    path = terminal.home / "endpoints" / name / "config.yaml"
    path.write_text(json.dumps({"heartbeat_period": 5, **settings}))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that does not exist; tasks may wait for it, and it exists after the test."""
    path = tmp_path / "gate"
    yield path
    path.touch()


#: A task that runs until the file `gate` exists.
WAIT = ShellFunction("until [ -e {gate} ]; do sleep 0.02; done")
