"""The service and the endpoint of a stack: how to start them, and to tell that they are ready."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from flux_endpoint.errors import ConfigurationError, FluxEndpointError, ServiceUnreachableError
from flux_endpoint.paths import HOME_VARIABLE
from flux_endpoint.processes import Gate
from flux_endpoint.processes.helper import NOTICE
from flux_endpoint.stack import credentials, ports
from flux_endpoint.stack.broker import RabbitNode
from flux_endpoint.stack.programs import Program, Programs, run_command
from flux_endpoint.stack.state import StackDirectory
from flux_endpoint.variables import without_credentials

#: Name of a stack's only user.
USER = "local"
PREFERRED_PORT = 8080
#: Seconds after which a start is given up.
SERVICE_TIMEOUT = 60.0
ENDPOINT_TIMEOUT = 90.0
#: Seconds for a graceful end, after which a program is killed.
GRACE = 10.0
#: Seconds that the endpoint's workers have to end after it was killed.
_WORKERS_END = 5.0


def _environment(directory: StackDirectory) -> dict[str, str]:
    """Return this process's environment without variables that name another service."""
    return {**without_credentials(os.environ), HOME_VARIABLE: str(directory.home)}


def check_port(wanted: int | None) -> None:
    """Raise ConfigurationError if the requested port is in use."""
    if wanted is not None and not ports.is_free(wanted):
        raise ConfigurationError(
            f"port {wanted} is in use on {ports.LOOPBACK}: choose another with --port"
        )


class ServicePart:
    """The REST service.

    Args:
        directory: the stack's directory.
        programs: runs the process.
        broker: the stack's RabbitMQ.
    """

    def __init__(self, directory: StackDirectory, programs: Programs, broker: RabbitNode) -> None:
        self._directory = directory
        self._programs = programs
        self._broker = broker
        self.port = 0
        self.token = ""
        self._gate: Gate | None = None
        self._candidates: list[int] = []
        self._known_token = ""

    @property
    def url(self) -> str:
        """The service's URL."""
        return f"http://{ports.LOOPBACK}:{self.port}"

    def prepare(self, wanted: int | None, last: int | None, token: str) -> None:
        """Start the process, which waits until `start`; again, because the broker has other URLs.

        Args:
            wanted: the required port; `None`: the `last` one, or a free one.
            last: the previous port.
            token: the clients' token; kept if the service still knows it.
        """
        self.stop()
        self._known_token = token or self._known_token
        if not self._known_token:
            with contextlib.suppress(FluxEndpointError):  # the service will say it better
                self._known_token = self._create_token()
        likely = [port for port in (last, PREFERRED_PORT) if port and ports.is_free(port)]
        self._candidates = [wanted] if wanted is not None else likely[:1] + ports.free_ports(2)
        self._gate = self._gate or Gate(self._directory.path / "service.gate")
        self.port = self._candidates[0]
        self.launch()

    def start(self) -> None:
        """Let the prepared service go on, and write credentials.json."""
        self._open()
        reason = "found no free port"
        for candidate in self._candidates:
            if candidate != self.port:
                self.port = candidate
                self.launch()
            ended = self._programs.wait_ready("service", SERVICE_TIMEOUT)
            if ended is None and self._log_in(self._known_token):
                return
            if ended is None:  # another service answers there, and ours is about to end
                self.stop()
                reason = f"is not the one that answers at {self.url}"
            else:
                reason = ended.reason
                if "already in use" not in reason and ports.is_free(candidate):
                    break  # the port was not the reason
        raise FluxEndpointError(f"the service {reason}")

    def launch(self) -> None:
        """Start the process."""
        settings = {
            "HOST": ports.LOOPBACK,
            "PORT": str(self.port),
            "DATABASE_URL": self._database_url,
            "AMQP_URL": self._broker.service_url,
            "AUTHORIZATION_URL": self._broker.authorization_url,
            "MANAGEMENT_URL": self._broker.management_url,
            "METRICS_USERS": USER,
        }
        env = {f"FLUX_ENDPOINT_SERVICE_{key}": value for key, value in settings.items()}
        env |= self._gate.environment if self._gate is not None else {}
        self._programs.start(
            Program("service", ["service", "run"], {**_environment(self._directory), **env})
        )

    def _log_in(self, token: str) -> bool:
        """Write credentials.json; return whether this stack's service answers at its URL."""
        try:
            if not token or not credentials.is_valid(self.url, token):
                token = self._create_token()
                if not credentials.is_valid(self.url, token):
                    return False
        except ServiceUnreachableError:  # the other server has ended in the meantime
            return False
        self.token = token
        credentials.save_credentials(self._directory.credentials, self.url, token)
        return True

    def _create_token(self) -> str:
        variable = {"FLUX_ENDPOINT_SERVICE_DATABASE_URL": self._database_url}
        env = {**_environment(self._directory), **variable}
        made = run_command(["service", "token", "create", USER], env, self._directory.path)
        return made.split()[-1]

    def stop(self) -> None:
        """End the process."""
        self._programs.stop("service", GRACE)

    def _open(self) -> None:
        if self._gate is not None:
            self._gate.open()

    @property
    def _database_url(self) -> str:
        # Run the stack's programs in its directory, so that the URL needs no path to quote.
        return f"sqlite:///{self._directory.database.name}"


class EndpointPart:
    """One endpoint.

    Args:
        directory: the stack's directory.
        programs: runs the process.
        name: the endpoint's name.
    """

    def __init__(self, directory: StackDirectory, programs: Programs, name: str) -> None:
        self._directory = directory
        self._programs = programs
        self.name = name
        self.id = ""
        self.executor = ""
        self._home = directory.home / "endpoints" / name
        self._gate: Gate | None = None

    def prepare(self) -> None:
        """Configure a new endpoint, and start the process, which waits until `start`."""
        if self._programs.is_running("endpoint"):
            return
        if not (self._home / "config.yaml").exists():
            env = _environment(self._directory)
            run_command(["configure", self.name], env, self._directory.path)
        self._gate = self._gate or Gate(self._directory.path / "endpoint.gate")
        self.launch()

    def start(self, service: ServicePart) -> None:
        """Let the prepared endpoint go on, and wait until the service reports it online."""
        if self._gate is not None:
            self._gate.open()

        def online() -> bool:
            status = _read(self._home / "status.json")
            self.id = str(status.get("endpoint_id") or "")
            self.executor = str(status.get("executor") or "")
            report = credentials.endpoint_status(service.url, service.token, self.id)
            return report.get("status") == "online"

        ended = self._programs.wait_ready("endpoint", ENDPOINT_TIMEOUT, online)
        if ended is not None:
            raise FluxEndpointError(f"the endpoint {ended.reason}")

    def launch(self) -> None:
        """Start the process."""
        # If it is killed, its workers have this time to write their results to disk.
        env = {**_environment(self._directory), NOTICE: f"{_WORKERS_END:g}"}
        env |= self._gate.environment if self._gate is not None else {}
        self._programs.start(Program("endpoint", ["start", self.name], env))

    def stop(self) -> None:
        """End the process."""
        self._programs.stop("endpoint", GRACE)


def _read(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`; {} if there is none yet."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
