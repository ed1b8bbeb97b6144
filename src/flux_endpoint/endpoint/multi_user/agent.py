"""The agent of a multi-user endpoint: starts user endpoints on command, and supervises them."""

from __future__ import annotations

import logging
import os
import queue
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from flux_endpoint import __version__
from flux_endpoint.amqp import AmqpConnection, Delivery, StateChange
from flux_endpoint.amqp.state import ConnectionState
from flux_endpoint.endpoint.broker_link import AMQP_HEARTBEAT, COMMAND_PREFETCH
from flux_endpoint.endpoint.connectivity import Connectivity
from flux_endpoint.endpoint.inbox import (
    CommandDelivery,
    ConsumeRefused,
    EndpointGone,
    QueueGranted,
    Signal,
)
from flux_endpoint.endpoint.multi_user.accounts import Accounts, LocalAccount
from flux_endpoint.endpoint.multi_user.commands import (
    InvalidCommandError,
    StartCommand,
    read_start,
)
from flux_endpoint.endpoint.multi_user.config import MultiUserConfig, MultiUserFiles
from flux_endpoint.endpoint.multi_user.failures import FailureReporter
from flux_endpoint.endpoint.multi_user.mapping import IdentityMapping
from flux_endpoint.endpoint.multi_user.process import UserEndpointProcess, UserEndpointState
from flux_endpoint.endpoint.multi_user.user_endpoint import UserEndpointTask
from flux_endpoint.endpoint.outbox import PublishTarget
from flux_endpoint.endpoint.registration import BrokerUrl
from flux_endpoint.endpoint.status import AgentStatus
from flux_endpoint.errors import (
    EndpointGoneError,
    EndpointInUseError,
    FluxEndpointError,
    PublishError,
)
from flux_endpoint.logs import event
from flux_endpoint.protocol.messages import EPStatusReport, pack
from flux_endpoint.protocol.queues import EndpointQueues

log = logging.getLogger(__name__)

#: Seconds that a killed process has to be gone.
_KILL_TIMEOUT = 5.0


@dataclass(frozen=True)
class _Ready:
    process: UserEndpointProcess


@dataclass(frozen=True)
class _Ended:
    process: UserEndpointProcess


_Event: TypeAlias = (
    StateChange
    | QueueGranted
    | ConsumeRefused
    | CommandDelivery
    | EndpointGone
    | Signal
    | _Ready
    | _Ended
)


class LimitError(FluxEndpointError):
    """As many user endpoints run as are permitted; the text is for the user."""


class MultiUserAgent:
    """Obeys start commands. One thread, which calls `run`, owns all user endpoints.

    Args:
        queues: the answer to the registration.
        config: the endpoint's configuration.
        files: template, schema, environment and identity mapping.
        accounts: decides which user runs tasks as which account.
        url: returns the broker's URL for each attempt.
        on_status: told each change of the agent's status.
    """

    def __init__(
        self,
        queues: EndpointQueues,
        config: MultiUserConfig,
        files: MultiUserFiles,
        accounts: Accounts,
        *,
        url: BrokerUrl,
        on_status: Callable[[AgentStatus], None],
    ) -> None:
        self._queues = queues
        self._config = config
        self._files = files
        self._accounts = accounts
        self._url = url
        self._on_status = on_status
        self._inbox: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        url.on_gone = lambda reason: self._inbox.put(EndpointGone(reason))
        url.on_locked = lambda: self._inbox.put(Signal.STOP)
        self._link = Connectivity(queues.command_queue_info.queue)
        self._processes: dict[str, UserEndpointProcess] = {}
        self._failures = FailureReporter()
        self._reports = _Reports(queues, config.heartbeat_period)
        self._stopping = False

    def stop(self) -> None:
        """Stop: user endpoints end within `shutdown_grace`; a second call ends them at once."""
        self._inbox.put(Signal.STOP)

    def run(self) -> None:
        """Work until `stop`.

        Raises:
            EndpointInUseError: another process runs this endpoint.
            EndpointGoneError: the service does not know the endpoint any more.
        """
        connection = AmqpConnection(
            self._url,
            name=f"endpoint {self._queues.endpoint_id}",
            on_state=self._on_state,
            heartbeat=AMQP_HEARTBEAT,
            max_unconfirmed=None,
        )
        try:
            connection.start()
            connection.consume(
                self._queues.command_queue_info.queue,
                lambda delivery: self._inbox.put(CommandDelivery(delivery)),
                prefetch=COMMAND_PREFETCH,
                exclusive=True,
                on_accepted=lambda: self._inbox.put(QueueGranted()),
                on_refused=lambda reason: self._inbox.put(ConsumeRefused(reason)),
            )
            while not self._stopping:
                if self._link.owns_queue and self._reports.is_due:
                    self._reports.send(connection, self._shown())
                self._handle(self._next())
        finally:
            self._close()
            if self._link.owns_queue:
                self._reports.send_last(connection)
            connection.close(2.0 if self._link.connected else 0.0)
            self._failures.close()

    def _next(self) -> _Event | None:
        until_report = self._reports.due - time.monotonic() if self._link.owns_queue else 3600.0
        timeout = min(until_report, self._link.gives_up_in)
        try:
            return self._inbox.get(timeout=max(0.0, timeout))
        except queue.Empty:
            if not self._link.owns_queue and self._link.gives_up_in <= 0:
                raise EndpointInUseError(
                    f"another process runs endpoint {self._queues.endpoint_id}"
                ) from None
            return None

    def _handle(self, each: _Event | None) -> None:
        match each:
            case CommandDelivery(delivery):
                self._command(delivery)
            case _Ready(process):
                if process.state is UserEndpointState.STARTING:
                    process.ready()
                    self._log(logging.INFO, "user endpoint ready", process)
            case _Ended(process):
                self._ended(process)
            case EndpointGone(reason):
                raise EndpointGoneError(reason)
            case Signal.STOP:
                event(log, logging.INFO, "endpoint stops", user_endpoints=len(self._processes))
                self._stopping = True
                self._publish_status()
            case StateChange() | QueueGranted() | ConsumeRefused():
                self._note(each)

    def _note(self, change: StateChange | QueueGranted | ConsumeRefused) -> None:
        match change:
            case StateChange():
                if self._link.changed(change):
                    self._publish_status()
                if change.state is ConnectionState.CONNECTED:
                    self._reports.due = 0.0
            case QueueGranted():
                if self._link.granted():
                    self._publish_status()
            case ConsumeRefused(reason):
                if self._link.refused(reason):
                    self._publish_status()
                if self._link.owns_queue:
                    self._url.ask()  # the queue was deleted: the endpoint is stopped, or deleted

    # Commands

    def _command(self, delivery: Delivery) -> None:
        try:
            command = read_start(delivery)
        except InvalidCommandError as error:
            event(log, logging.ERROR, "command dead-lettered", reason=error)
            delivery.reject()
            return
        delivery.ack()  # if it is lost, the service sends another
        running = self._processes.get(command.arguments.name)
        if running is None:
            self._start(command)
            return
        running.note(command)
        if running.command.arguments.amqp_creds != command.arguments.amqp_creds:
            event(log, logging.INFO, "user endpoint gets new credentials", name=running.name)
            running.stop()

    def _start(self, command: StartCommand) -> None:
        user, name = command.globus_username, command.arguments.name
        try:
            account = self._account(command)
            self._check_limits(account)
            process = UserEndpointProcess(
                command,
                account,
                on_ready=lambda each: self._inbox.put(_Ready(each)),
                on_ended=lambda each: self._inbox.put(_Ended(each)),
            )
            process.start(self._task(command, account).dump(), self._files.environment())
        except FluxEndpointError as error:
            event(
                log, logging.ERROR, "user endpoint not started", name=name, user=user, reason=error
            )
            self._failures.report(command.arguments.amqp_creds, str(error))
            return
        self._processes[name] = process
        self._log(logging.INFO, "user endpoint started", process)

    def _account(self, command: StartCommand) -> LocalAccount:
        text = self._files.mapping()
        mapping = text and IdentityMapping(text, source=str(self._files.mapping_path))
        return self._accounts.account(
            command.globus_username, command.globus_identity_set, mapping or None
        )

    def _check_limits(self, account: LocalAccount) -> None:
        each, everybody = self._config.max_user_endpoints_per_user, self._config.max_user_endpoints
        of_account = Counter(process.account.uid for process in self._processes.values())
        if of_account[account.uid] >= each:
            raise LimitError(
                f"{each} user endpoints of account {account.name} run already, one for each "
                "user_endpoint_config, and no more are permitted: submit again when one of them "
                "has ended, which it does when it is idle"
            )
        if len(self._processes) >= everybody:
            raise LimitError(
                f"{everybody} user endpoints of all users run already, and no more are permitted: "
                "submit again later"
            )

    def _task(self, command: StartCommand, account: LocalAccount) -> UserEndpointTask:
        given = command.arguments
        return UserEndpointTask(
            uid=account.uid,
            queues=given.amqp_creds.model_dump(),
            parent_id=self._queues.endpoint_id,
            template=self._files.template(),
            template_source=self._files.template_path.name,
            schema=self._files.schema(),
            schema_source=self._files.schema_path.name,
            values=given.user_opts,
            user_runtime=given.user_runtime,
            mapped_identity={
                "local": account.shown(),
                "globus": {"id": command.globus_effective_identity},
            },
        )

    # User endpoints

    def _ended(self, process: UserEndpointProcess) -> None:
        was, process.state = process.state, UserEndpointState.ENDED
        self._processes.pop(process.name, None)
        level = logging.ERROR if process.failure else logging.INFO
        self._log(level, "user endpoint ended", process, reason=process.failure or None)
        if was is UserEndpointState.STARTING and process.failure:
            self._failures.report(process.command.arguments.amqp_creds, process.failure)
        elif (again := process.next) is not None and not self._stopping:
            self._start(again)

    def _close(self) -> None:
        """End all user endpoints, in `shutdown_grace` or, at a second request, at once."""
        self._stopping = True
        for process in self._processes.values():
            process.stop()
        self._await_ends(time.monotonic() + self._config.shutdown_grace)
        for process in self._processes.values():
            self._log(logging.WARNING, "user endpoint did not end in time and is killed", process)
            process.kill()
        self._await_ends(time.monotonic() + _KILL_TIMEOUT)

    def _await_ends(self, until: float) -> None:
        while self._processes and time.monotonic() < until:
            try:
                each = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            if each is Signal.STOP:
                return
            if isinstance(each, _Ended):
                self._ended(each.process)

    def _log(self, level: int, what: str, process: UserEndpointProcess, **more: Any) -> None:
        fields = {
            "name": process.name,
            "user": process.command.globus_username,
            "account": process.account.name,
            "pid": process.pid,
            **{key: value for key, value in more.items() if value is not None},
        }
        event(log, level, what, **fields)

    def _shown(self) -> list[dict[str, Any]]:
        """Return the user endpoints, for the status report."""
        return [
            {
                "name": each.name,
                "user": each.command.globus_username,
                "account": each.account.name,
                "state": each.state.name.lower(),
                "pid": each.pid,
                "since": each.since,
            }
            for each in self._processes.values()
        ]

    # The connection

    def _on_state(self, change: StateChange) -> None:
        """Handle a change of the connection's state. Runs on the connection's thread."""
        if change.state is ConnectionState.CONNECTED:
            self._url.connected()
        self._inbox.put(change)

    def _publish_status(self) -> None:
        if self._stopping:
            state = "stopping"
        else:
            state = "connected" if self._link.takes_tasks else "disconnected"
        executor = "multi-user" if self._link.owns_queue else None
        self._on_status(AgentStatus(state, self._link.trouble, executor, self._link.gives_up_in))


class _Reports:
    """Sends the status reports of a multi-user endpoint; belongs to the agent's thread."""

    def __init__(self, queues: EndpointQueues, period: float) -> None:
        self._endpoint_id = UUID(queues.endpoint_id)
        self._target = PublishTarget(queues.heartbeat_queue_info)
        self._period = period
        self._started = time.time()
        self._last: Future[None] | None = None
        #: Monotonic time at which the next is due.
        self.due = 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self.due

    def send(self, connection: AmqpConnection, user_endpoints: list[dict[str, Any]]) -> None:
        self.due = time.monotonic() + self._period
        if self._last is None or self._last.done():  # else the connection is down
            self._publish(connection, self._period, user_endpoints)

    def send_last(self, connection: AmqpConnection) -> None:
        """Say that the endpoint ends, and its user endpoints with it."""
        self._publish(connection, 0.0, [])

    def _publish(
        self, connection: AmqpConnection, period: float, user_endpoints: list[dict[str, Any]]
    ) -> None:
        state = {
            "endpoint_version": __version__,
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "start_unix": self._started,
            "report_unix": time.time(),
            "heartbeat_period": period,
            "user_endpoints": user_endpoints,
        }
        report = EPStatusReport(endpoint_id=self._endpoint_id, global_state=state, task_statuses={})
        try:
            self._last = self._target.publish(connection, pack(report))
        except PublishError:
            event(log, logging.DEBUG, "status report not sent: the connection is closed")
