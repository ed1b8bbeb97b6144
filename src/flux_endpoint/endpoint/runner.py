"""Runs one endpoint in this process, from its configuration to its agent's end."""

from __future__ import annotations

import logging
import os
import queue
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flux_endpoint import logs, paths
from flux_endpoint.backoff import Backoff
from flux_endpoint.endpoint.agent import Agent
from flux_endpoint.endpoint.config import declares_multi_user, parse_config
from flux_endpoint.endpoint.directory import GONE, AgentLock, EndpointDirectory
from flux_endpoint.endpoint.enrolment import Enrolment
from flux_endpoint.endpoint.host import AgentHost, HostedAgent, LoadedEndpoint, new_engine
from flux_endpoint.endpoint.registration import (
    BrokerUrl,
    Registration,
    last_reporter,
    registration_request,
)
from flux_endpoint.endpoint.status import AgentStatus
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


class Runner(AgentHost):
    """Runs one endpoint on the main thread, until a signal ends it.

    Args:
        directory: the endpoint's directory.
        notify: called with messages for the program that started this one in the background:
            `{"say": line}` while something is awaited, with the seconds `"gives_up_in"` if the
            agent will give up; `{"ready": {...}}` once tasks can come.
        restart: starts this program again in this process, with the given environment, and does not
            return. Called once the endpoint has a token of its own, if the owner's is among the
            environment variables, where other processes of the account can read it.
    """

    def __init__(
        self,
        directory: EndpointDirectory,
        *,
        notify: Callable[[dict[str, Any]], None] | None = None,
        restart: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        super().__init__(directory, notify)
        self._restart = restart or (lambda _environment: None)

    def run(self) -> int:
        """Run until the end; return the exit code.

        Raises:
            FluxEndpointError: the endpoint can't run; the text says why and what to do.
        """
        self._directory.require()
        parent = self._directory.started_by()
        if parent is not None:
            raise ConfigurationError(
                f"endpoint {self._directory.name} is a user endpoint: its multi-user endpoint "
                f"{parent} starts it when there are tasks for it"
            )
        return_large_blocks()
        try:
            text = self._directory.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"can't read {self._directory.config}: {error}") from None
        loaded = self._load(text)
        logs.configure(loaded.log_level, log_format=loaded.log_format)
        registration = partial(
            Registration, directory=self._directory.path, request=loaded.registration
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
            self._leave_secrets(has_other_users=loaded.has_other_users)
            self._endpoint_id = queues.endpoint_id
            self._agent = loaded.new_agent(queues, enrolment, self._write_status)
            if self._signals.empty():
                self._run_agent(self._agent, enrolment.rest)
        return self._exit_code()

    def _load(self, text: str) -> LoadedEndpoint:
        if declares_multi_user(text):
            from flux_endpoint.endpoint.multi_user.loading import load  # noqa: PLC0415 - rare

            return load(self._directory, text)
        config = parse_config(text, source=str(self._directory.config))

        def new_agent(
            queues: EndpointQueues, enrolment: Enrolment, on_status: Callable[[AgentStatus], None]
        ) -> Agent:
            return Agent(
                queues,
                new_engine(config, queues.endpoint_id, self._directory),
                self._directory.path,
                config,
                url=BrokerUrl(queues, enrolment.renew),
                taken=lambda: enrolment.registration.taken(queues.endpoint_id),
                on_status=on_status,
            )

        return LoadedEndpoint(
            log_level=config.log_level,
            log_format=config.log_format,
            has_other_users=bool(config.users or config.groups),
            registration=registration_request(self._directory.name, config, text),
            new_agent=new_agent,
        )

    def _run_agent(self, agent: HostedAgent, rest: RestClient) -> None:
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

    def _leave_secrets(self, *, has_other_users: bool) -> None:
        """Hide the owner's credentials from tasks, which run as the same account."""
        if has_secrets(os.environ) and self._signals.empty():
            self._restart(without_credentials(os.environ))
        for name in filter(holds_credentials, list(os.environ)):
            del os.environ[name]
        file = paths.credentials_file()
        if has_other_users and file.exists():
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
