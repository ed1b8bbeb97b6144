"""The endpoints of this machine: configuration, directory, agent, journal, registration."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

from flux_endpoint.cli.checks.finding import Finding, failed, ok, skipped, warning
from flux_endpoint.cli.checks.machine import check_disk, check_private
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import shown_age
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.endpoint.journal import LAYOUT
from flux_endpoint.endpoint.multi_user.config import MultiUserConfig
from flux_endpoint.endpoint.multi_user.loading import load_any
from flux_endpoint.endpoint.registration import read_endpoint_id
from flux_endpoint.errors import (
    ConfigurationError,
    FluxEndpointError,
    RecordError,
    ServiceError,
)
from flux_endpoint.sqlite_file import examine
from flux_endpoint.stack.state import start_command

#: Largest journal in bytes that is checked.
MOST_JOURNAL = 256 << 20


class EndpointChecks:
    """Checks one endpoint.

    Args:
        directory: the endpoint's directory.
        api: client of the service, if that answers.
        flux_reachable: whether an endpoint started here would find a Flux instance.
    """

    def __init__(
        self, directory: EndpointDirectory, api: OperatorApi | None, *, flux_reachable: bool
    ) -> None:
        self._directory = directory
        self._api = api
        self._flux_reachable = flux_reachable
        self._name = directory.name

    def run(self) -> Iterator[Finding]:
        """Yield the findings."""
        yield check_private("endpoint.directory", self._directory.path, self._name)
        config: EndpointConfig | MultiUserConfig | None = None
        try:
            config = load_any(self._directory)
        except FluxEndpointError as error:
            yield failed("endpoint.config", str(error), "edit that file", self._name)
        else:
            yield ok("endpoint.config", f"{self._directory.config} is valid", self._name)
        running = self._directory.holder() is not None
        if isinstance(config, EndpointConfig):
            yield from self._executor(config, running=running)
            yield from self._working_directory(config)
        yield from self._agent()
        if not isinstance(config, MultiUserConfig):  # which runs no tasks
            yield from self._journal()
        if self._directory.started_by() is None:  # no user sees a user endpoint at the service
            yield from self._identity(running=running)

    def _executor(self, config: EndpointConfig, *, running: bool) -> Iterator[Finding]:
        if config.engine.executor == "flux" and not running and not self._flux_reachable:
            yield failed(
                "endpoint.executor",
                "its configuration asks for Flux, and there is no instance here",
                "start it inside of one (flux alloc, flux batch), or set engine.executor: auto",
                self._name,
            )

    def _working_directory(self, config: EndpointConfig) -> Iterator[Finding]:
        path = self._directory.path / config.engine.working_dir
        above = path
        while not above.exists():
            above = above.parent
        if not os.access(above, os.W_OK | os.X_OK):
            yield failed(
                "endpoint.working_dir",
                f"{path} can't be written: tasks could not run there",
                "set engine.working_dir to a directory of yours",
                self._name,
            )
            return
        yield check_disk("endpoint.working_dir", path, "the tasks' files", self._name)

    def _agent(self) -> Iterator[Finding]:
        holder = self._directory.holder()
        if holder is None:
            said = f"not running; what starts it: {start_command(self._name)}"
            yield skipped("endpoint.agent", said, self._name)
            return
        who = f"pid {holder.pid} on {holder.hostname}"
        status = self._directory.status()
        if not holder.is_here:
            yield ok("endpoint.agent", f"runs as {who}, another host", self._name)
        elif status is None or status.pid != holder.pid:
            yield warning(
                "endpoint.agent",
                f"{who} is starting",
                f"if that takes long: flux-endpoint logs {self._name}",
                self._name,
            )
        elif status.state == "connected":
            age = shown_age(time.time() - status.since)
            if status.reason:
                mend = "fix that; nothing is lost meanwhile"
                yield failed("endpoint.agent", f"{who}: {status.reason}", mend, self._name)
            else:
                yield ok("endpoint.agent", f"runs as {who}, connected for {age}", self._name)
        else:
            age = shown_age(time.time() - status.since)
            yield failed(
                "endpoint.agent",
                f"{who} is {status.state} for {age}: {status.reason or 'no reason given'}",
                f"it tries again by itself; see flux-endpoint logs {self._name}",
                self._name,
            )

    def _why_silent(self) -> str:
        status = self._directory.status()
        if status is not None and status.reason:
            return f"fix what keeps its status reports from the service: {status.reason}"
        return (
            "its status reports don't arrive: look at its log and at the service's broker "
            f"(flux-endpoint logs {self._name})"
        )

    def _journal(self) -> Iterator[Finding]:
        path = self._directory.journal
        if not path.exists():
            if self._directory.identity.exists():
                yield self._without_journal(f"it has no journal ({path})")
            return
        if path.stat().st_size > MOST_JOURNAL:
            yield skipped("endpoint.journal", f"{path} is too large to check", self._name)
            return
        try:
            found = examine(path, LAYOUT)
        except RecordError as error:
            how = "look at its mode and owner, and whether its disk is full or broken"
            yield failed("endpoint.journal", str(error), how, self._name)
            return
        counts = f"{found.rows.get('tasks', 0)} tasks, {found.rows.get('results', 0)} results"
        if found.damage:
            yield failed(
                "endpoint.journal",
                f"{path} is damaged: {found.damage}; {counts} can be read",
                "restart the endpoint: it keeps what can be read, renames the damaged file, and "
                "ends the other tasks with an error. To have the file examined, copy it first",
                self._name,
            )
        elif found.is_new:
            yield self._without_journal(f"its journal {path} is empty")
        else:
            what = f"its journal is sound: {counts} that are not confirmed"
            yield ok("endpoint.journal", what, self._name)

    def _without_journal(self, said: str) -> Finding:
        return warning(
            "endpoint.journal",
            said,
            "tasks that it had taken end with an error at its next start; to have them run, put "
            "the journal back before",
            self._name,
        )

    def _identity(self, *, running: bool) -> Iterator[Finding]:
        try:
            endpoint_id = read_endpoint_id(self._directory.identity)
        except ConfigurationError as error:
            yield failed("endpoint.identity", str(error), "restore or delete it", self._name)
            return
        if endpoint_id is None:
            yield skipped("endpoint.identity", "it was never registered", self._name)
            return
        if self._api is None:
            yield skipped("endpoint.service", "the service does not answer", self._name)
            return
        registered_at = self._service_url()
        if registered_at not in {None, self._api.url}:
            yield warning(
                "endpoint.identity",
                f"it was registered at {registered_at}, the credentials are for {self._api.url}",
                f"use the credentials of {registered_at}, or delete {self._directory.identity} to "
                "register it anew",
                self._name,
            )
        yield from self._at_service(endpoint_id, self._api, running=running)

    def _service_url(self) -> str | None:
        try:
            content = json.loads(self._directory.identity.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        url = content.get("service_url")
        return url if isinstance(url, str) else None

    def _at_service(
        self, endpoint_id: str, api: OperatorApi, *, running: bool
    ) -> Iterator[Finding]:
        try:
            state = api.endpoint_state(endpoint_id)
        except FluxEndpointError as error:
            if not isinstance(error, ServiceError) or error.http_status != 404:
                yield failed("endpoint.service", str(error), "fix the service first", self._name)
                return
            yield failed(
                "endpoint.service",
                f"{api.url} does not know {endpoint_id}",
                f"is it the right service? Else delete {self._directory.identity}: the endpoint "
                "gets a new id at its next start",
                self._name,
            )
            return
        if state.status == "online":
            yield ok("endpoint.service", f"the service calls it online ({endpoint_id})", self._name)
        elif not running:
            yield ok("endpoint.service", f"the service knows it ({endpoint_id})", self._name)
        else:
            since = "" if state.since is None else f" for {shown_age(time.time() - state.since)}"
            yield failed(
                "endpoint.service",
                f"it runs here, but the service calls it offline{since} ({state.absence})",
                self._why_silent(),
                self._name,
            )
