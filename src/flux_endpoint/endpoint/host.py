"""Hosts an endpoint's agent in this process: its engine, signals, the status, the exit code."""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.directory import DirectoryStatus, EndpointDirectory, this_machine
from flux_endpoint.endpoint.enrolment import Enrolment
from flux_endpoint.endpoint.status import AgentStatus
from flux_endpoint.engine.base import Engine
from flux_endpoint.logs import event
from flux_endpoint.protocol.queues import EndpointQueues

log = logging.getLogger(__name__)


class HostedAgent(Protocol):
    """An agent, which runs on the main thread until it is stopped."""

    def run(self) -> None:
        """Work until `stop`."""

    def stop(self) -> None:
        """Stop gracefully; a second call stops at once. From any thread."""


@dataclass(frozen=True)
class LoadedEndpoint:
    """A configuration that was read.

    Attributes:
        log_level: as of `logs.configure`.
        log_format: as of `logs.configure`.
        has_other_users: whether others than the owner may run tasks as this account.
        registration: the body of the registration.
        new_agent: makes the agent, of the queues, the enrolment and the receiver of its status.
    """

    log_level: str
    log_format: Literal["text", "json"]
    has_other_users: bool
    registration: Mapping[str, Any]
    new_agent: Callable[[EndpointQueues, Enrolment, Callable[[AgentStatus], None]], HostedAgent]


class AgentHost:
    """Runs an agent on the main thread, until a signal ends it.

    Args:
        directory: the endpoint's directory.
        notify: see `Runner`.
    """

    def __init__(
        self, directory: EndpointDirectory, notify: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self._directory = directory
        self._notify = notify or (lambda _message: None)
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._agent: HostedAgent | None = None
        self._endpoint_id = ""
        self._said_ready = False

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
            self._notify({"ready": about})
        elif status.reason:
            message = {"say": status.reason}
            gives_up = status.gives_up_in < math.inf
            self._notify({**message, "gives_up_in": status.gives_up_in} if gives_up else message)

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


def new_engine(config: EndpointConfig, endpoint_id: str, directory: EndpointDirectory) -> Engine:
    """Return the engine that a configuration describes."""
    from flux_endpoint.engine import FluxEngine  # noqa: PLC0415 - brings Flux along
    from flux_endpoint.engine.blocks import BlockEngine  # noqa: PLC0415 - brings Flux along

    kind = FluxEngine if config.engine.blocks is None else BlockEngine
    return kind(
        config.engine,
        endpoint_id=endpoint_id,
        directory=directory.path,
        plain_programs=None if config.allowed_functions is None else config.plain_programs,
    )
