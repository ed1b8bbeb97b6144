"""Runs one endpoint in this process, from its configuration to its agent's end."""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flux_endpoint import logs, paths
from flux_endpoint.backoff import Backoff
from flux_endpoint.endpoint.agent import Agent
from flux_endpoint.endpoint.config import EndpointConfig, parse_config
from flux_endpoint.endpoint.directory import (
    GONE,
    AgentLock,
    DirectoryStatus,
    EndpointDirectory,
    this_machine,
)
from flux_endpoint.endpoint.enrolment import Enrolment
from flux_endpoint.endpoint.registration import BrokerUrl, Registration, last_reporter
from flux_endpoint.endpoint.status import AgentStatus
from flux_endpoint.engine.base import Engine
from flux_endpoint.errors import (
    ConfigurationError,
    EndpointGoneError,
    EndpointInUseError,
    ServiceUnreachableError,
)
from flux_endpoint.logs import event
from flux_endpoint.processes import signal_listener
from flux_endpoint.processes.memory import return_large_blocks
from flux_endpoint.protocol.queues import EndpointQueues
from flux_endpoint.rest import RestClient
from flux_endpoint.variables import has_secrets, holds_credentials, without_credentials

log = logging.getLogger(__name__)

#: Timeout (s) of a REST request; registering is retried here, and by the agent.
REST_TIMEOUT = 15.0
#: Seconds between two attempts to register: the first, and the longest.
FIRST_BACKOFF = 0.5
MAX_BACKOFF = 15.0


class Runner:
    """Runs one endpoint on the main thread, until a signal ends it.

    Args:
        directory: the endpoint's directory.
        tell: given what the one who started us in the background waits for: `{"say": line}` (with
            the seconds of `"patience"` after which the agent gives up, if it does) while
            something is awaited, `{"ready": {...}}` once tasks can come.
        restart: given an environment, starts this program anew with it, in this very process, and
            does not return; called once the endpoint has a token of its own, if the owner's is
            among the environment variables, where other processes of the account can read it.
    """

    def __init__(
        self,
        directory: EndpointDirectory,
        *,
        tell: Callable[[dict[str, Any]], None] | None = None,
        restart: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        self._directory = directory
        self._tell = tell or (lambda _message: None)
        self._restart = restart or (lambda _environment: None)
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._agent: Agent | None = None
        self._endpoint_id = ""
        self._said_ready = False

    def run(self) -> int:
        """Run until the end; return the exit code.

        Raises:
            FluxEndpointError: the endpoint can't run; the text says why and what to do.
        """
        self._directory.require()
        return_large_blocks()
        try:
            text = self._directory.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"can't read {self._directory.config}: {error}") from None
        config = parse_config(text, source=str(self._directory.config))
        logs.configure(config.log_level, log_format=config.log_format)
        registration = partial(
            Registration,
            directory=self._directory.path,
            name=self._directory.name,
            config=config,
            config_text=text,
        )
        with (
            AgentLock(self._directory),
            Enrolment(self._directory, registration, REST_TIMEOUT) as enrolment,
            signal_listener(self._signalled),
        ):
            self._catch_signals()
            self._write_status(AgentStatus("disconnected", "", None))
            queues = self._register(enrolment)
            if queues is None:
                return self._exit_code()
            self._leave_secrets(config)
            self._endpoint_id = queues.endpoint_id
            self._agent = Agent(
                queues,
                _new_engine(config, queues.endpoint_id, self._directory),
                self._directory.path,
                config,
                url=BrokerUrl(queues, enrolment.renew),
                taken=lambda: enrolment.registration.taken(queues.endpoint_id),
                on_status=self._write_status,
            )
            if self._signals.empty():
                self._run_agent(self._agent, enrolment.rest)
        return self._exit_code()

    def _run_agent(self, agent: Agent, rest: RestClient) -> None:
        try:
            agent.run()
        except EndpointInUseError as error:
            who = last_reporter(rest, self._endpoint_id)
            raise EndpointInUseError(
                f"{error}{f' ({who})' if who else ''}. Nothing was started here. End that one, or, "
                f"if {self._directory.path} is a copy of its directory, delete "
                f"{self._directory.identity} and {self._directory.journal} in the copy: it gets "
                "an id of its own then"
            ) from None
        except EndpointGoneError as error:
            self._write_status(AgentStatus(GONE, str(error), None))  # for `status` and `list`
            raise

    def _leave_secrets(self, config: EndpointConfig) -> None:
        """Hide the owner's credentials from tasks, which run as the same account."""
        if has_secrets(os.environ) and self._signals.empty():
            self._restart(without_credentials(os.environ))
        for name in filter(holds_credentials, list(os.environ)):
            del os.environ[name]
        file = paths.credentials_file()
        if (config.users or config.groups) and file.exists():
            event(
                log,
                logging.WARNING,
                "tasks of other users run as this account, and can read its credentials: move them "
                "away, the endpoint no longer needs them",
                file=str(file),
            )

    def _register(self, registration: Enrolment) -> EndpointQueues | None:
        """Register, however long it takes; return `None` if a signal ended the wait."""
        reason, backoff = "", Backoff(FIRST_BACKOFF, MAX_BACKOFF)
        while True:
            try:
                queues = registration.register()
            except ServiceUnreachableError as error:
                if str(error) != reason:
                    reason = str(error)
                    event(log, logging.WARNING, f"{reason}; trying again until it is back")
                    self._write_status(AgentStatus("disconnected", reason, None))
            else:
                if reason:
                    event(log, logging.WARNING, "the service is back")
                return queues
            try:
                self._signals.put(self._signals.get(timeout=next(backoff)))
            except queue.Empty:
                continue
            return None

    def _catch_signals(self) -> None:
        # A batch script gets SIGALRM when its allocation reaches its time limit.
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            if signal.getsignal(signum) is not signal.SIG_IGN or signum == signal.SIGTERM:
                signal.signal(signum, lambda *_: None)

    def _signalled(self, signum: int) -> None:
        """Handle a signal. Runs on its own thread."""
        self._signals.put(signum)
        if self._agent is not None:
            self._agent.stop()

    def _write_status(self, status: AgentStatus) -> None:
        self._publish_status(
            DirectoryStatus(
                pid=os.getpid(),
                state=status.state,
                reason=status.reason,
                endpoint_id=self._endpoint_id,
                executor=status.executor,
                flux_uri=os.environ.get("FLUX_URI") if status.executor == "flux" else None,
                since=time.time(),
                machine=this_machine(),
            )
        )
        if status.state == "connected" and not self._said_ready:
            self._said_ready = True
            about = {"endpoint_id": self._endpoint_id, "executor": status.executor}
            self._tell({"ready": about})
        elif status.reason:
            told = {"say": status.reason}
            gives_up = status.patience < math.inf
            self._tell({**told, "patience": status.patience} if gives_up else told)

    def _publish_status(self, status: DirectoryStatus) -> None:
        try:
            self._directory.write_status(status)
        except OSError as error:  # e.g. a full disk: the agent goes on
            event(log, logging.WARNING, "the endpoint's status can't be written", reason=error)

    def _exit_code(self) -> int:
        received = []
        while not self._signals.empty():
            received.append(self._signals.get())
        code = 130 if received and received[0] == signal.SIGINT else 0
        if len(received) > 1:  # "at once": do not wait for what the engine has not ended
            logging.shutdown()
            os._exit(code)
        return code


def _new_engine(config: EndpointConfig, endpoint_id: str, directory: EndpointDirectory) -> Engine:
    from flux_endpoint.engine import FluxEngine  # noqa: PLC0415 - brings Flux along
    from flux_endpoint.engine.blocks import BlockEngine  # noqa: PLC0415 - brings Flux along

    kind = FluxEngine if config.engine.blocks is None else BlockEngine
    return kind(
        config.engine,
        endpoint_id=endpoint_id,
        directory=directory.path,
        plain_programs=None if config.allowed_functions is None else config.plain_programs,
    )
