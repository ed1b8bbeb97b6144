"""The program of a user endpoint, which its multi-user endpoint starts as the user's account.

Run as `python -m flux_endpoint.endpoint.multi_user.user_endpoint NAME REPORT_FD PARENT`; standard
input has a `UserEndpointTask` as JSON. Template and values are read here, with the user's rights.
It ends when it is idle, at SIGTERM, and when its multi-user endpoint ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flux_endpoint import logs, paths
from flux_endpoint.endpoint.agent import Agent
from flux_endpoint.endpoint.config import EndpointConfig, parse_config
from flux_endpoint.endpoint.directory import AgentLock, EndpointDirectory
from flux_endpoint.endpoint.host import AgentHost, new_engine
from flux_endpoint.endpoint.multi_user.template import check_values, render
from flux_endpoint.endpoint.status import AgentStatus
from flux_endpoint.errors import ConfigurationError, FluxEndpointError
from flux_endpoint.logs import event
from flux_endpoint.processes import is_readable, signal_listener, watch_parent
from flux_endpoint.processes.memory import return_large_blocks
from flux_endpoint.protocol.queues import EndpointQueues

log = logging.getLogger(__name__)

#: Seconds for which an earlier process of the same user endpoint may still be ending.
_LOCK_TIMEOUT = 30.0
#: Seconds without a task after which a user endpoint ends, unless its template says otherwise.
IDLE_LIMIT = 300.0


@dataclass(frozen=True)
class UserEndpointTask:
    """The input of a user endpoint's process.

    Attributes:
        uid: the account's id, which the process must have.
        queues: how it reaches the broker, as in the command.
        parent_id: id of its multi-user endpoint.
        template: text of the template.
        template_source: the template's file, for messages.
        schema: text of the schema; `None`: there is none.
        schema_source: the schema's file, for messages.
        values: the user's values.
        user_runtime: description of the submitting program.
        mapped_identity: the account, for the template.
    """

    uid: int
    queues: dict[str, Any]
    parent_id: str
    template: str
    template_source: str
    schema: str | None
    schema_source: str
    values: dict[str, Any]
    user_runtime: dict[str, Any]
    mapped_identity: dict[str, Any]

    def dump(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def config_text(self) -> str:
        """Return the user endpoint's configuration as text.

        Raises:
            TemplateError: the values are invalid.
        """
        check_values(self.values, self.schema, source=self.schema_source)
        return render(
            self.template,
            self.values,
            user_runtime=self.user_runtime,
            mapped_identity=self.mapped_identity,
            source=self.template_source,
        )

    def config(self, text: str) -> EndpointConfig:
        """Return the configuration in a rendered text.

        Raises:
            ConfigurationError: the text is no configuration of an endpoint.
        """
        config = parse_config(text, source=f"{self.template_source}, filled in")
        if "stop_when_idle" in config.model_fields_set:
            return config
        return config.model_copy(update={"stop_when_idle": IDLE_LIMIT})


class _UserEndpoint(AgentHost):
    """Runs the agent of one user endpoint on the main thread."""

    def run(self, task: UserEndpointTask) -> None:
        """Run until the end.

        Raises:
            FluxEndpointError: it can't run; the text is for the user.
        """
        return_large_blocks()
        text = task.config_text()
        config = task.config(text)
        paths.write_private(self._directory.config, text)
        about = {"endpoint_id": task.queues["endpoint_id"], "started_by": task.parent_id}
        paths.write_private(self._directory.identity, json.dumps(about, indent=2) + "\n")
        logs.configure(config.log_level, log_format=config.log_format)
        queues = EndpointQueues.model_validate(task.queues)
        self._endpoint_id = queues.endpoint_id
        with signal_listener(self._signalled):
            self._catch_signals()
            self._agent = Agent(
                queues,
                new_engine(config, queues.endpoint_id, self._directory),
                self._directory.path,
                config,
                on_status=self._write_status,
            )
            parent = int(sys.argv[3])
            watch_parent(lambda: self._signalled(signal.SIGTERM), parent=parent)
            self._write_status(AgentStatus("disconnected", "", None))
            if self._signals.empty():
                self._agent.run()
        self._exit_code()


def main() -> int:
    """Run the user endpoint; return its exit code."""
    name, report_to = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(report_to, False)

    def tell(message: Mapping[str, Any]) -> None:
        nonlocal report_to
        if report_to >= 0 and ("ready" in message or "failed" in message):
            with contextlib.suppress(OSError):  # the multi-user endpoint is gone
                os.write(report_to, json.dumps(message).encode() + b"\n")
            os.close(report_to)
            report_to = -1

    try:
        task = UserEndpointTask(**json.loads(sys.stdin.buffer.read()))
        _check_account(task.uid)
        directory = _enter(name)
        with _lock(directory):
            _UserEndpoint(directory, tell).run(task)
    except FluxEndpointError as error:
        event(log, logging.ERROR, "user endpoint ends", reason=error)
        tell({"failed": str(error)})
        return 1
    except OSError as error:  # a full disk, or a home directory that does not exist
        where = f"{error.filename}: " if error.filename else ""
        tell({"failed": f"{where}{error.strerror or error}"})
        return 1
    return 0


def _check_account(uid: int) -> None:
    """Make sure that no right of another account is left."""
    ids = {*os.getresuid()}
    if ids != {uid} or (uid and 0 in {*os.getresgid()}):
        raise FluxEndpointError(f"the process has the uids {ids} instead of {uid}: not started")


def _enter(name: str) -> EndpointDirectory:
    """Change to the account's home, and write to a log in the user endpoint's directory."""
    home = os.environ["HOME"]
    try:
        os.chdir(home)
    except OSError as error:
        raise ConfigurationError(
            f"the home directory {home} of {os.environ['USER']} can't be used: {error.strerror}"
        ) from None
    directory = EndpointDirectory(name)
    paths.make_private_directory(directory.path)
    logs.put_aside(directory.log)
    log_file = os.open(directory.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, log_file, log_file)):
        os.dup2(descriptor, number)
    os.close(log_file)
    os.close(nothing)
    logs.configure("INFO")
    return directory


def _lock(directory: EndpointDirectory) -> AgentLock:
    """Return the directory's lock once an earlier process, which has it, has ended."""
    holder = directory.holder()
    if holder is not None and holder.is_here:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(holder.pid)
            try:
                is_readable(pidfd, _LOCK_TIMEOUT)
            finally:
                os.close(pidfd)
    return AgentLock(directory)


if __name__ == "__main__":
    sys.exit(main())
