"""The content of `flux-endpoint status`, collected from the service and this machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.targets import EndpointTarget, find_endpoint, local_endpoint
from flux_endpoint.endpoint.directory import EndpointDirectory, this_machine
from flux_endpoint.endpoint.lifecycle import Listed, list_endpoints
from flux_endpoint.errors import FluxEndpointError, NotFoundError, ServiceError
from flux_endpoint.protocol.operations import Absence, EndpointStateAnswer, ServiceStatusAnswer

#: The most concurrent requests about endpoints.
_AT_A_TIME = 8


@dataclass(frozen=True)
class ServiceView:
    """The service as seen from here.

    Attributes:
        url: its URL, or `None` if it is not configured.
        error: why there is no answer.
        seconds: duration of the request.
        clock_skew: seconds that its clock is ahead of ours.
    """

    url: str | None
    error: FluxEndpointError | None = None
    answer: ServiceStatusAnswer | None = None
    seconds: float = 0.0
    clock_skew: float = 0.0

    def document(self) -> dict[str, Any]:
        """Return it for JSON output."""
        return {
            "url": self.url,
            "error": None if self.error is None else str(self.error),
            **({} if self.answer is None else self.answer.model_dump(mode="json")),
            "seconds": round(self.seconds, 4),
            "clock_skew": round(self.clock_skew, 3),
        }


@dataclass(frozen=True)
class EndpointView:
    """An endpoint as the service and this machine see it; either may not know it."""

    target: EndpointTarget
    state: EndpointStateAnswer | None = None
    error: FluxEndpointError | None = None

    @property
    def status(self) -> str:
        """Status: "online" or "offline"; "unknown" if the service does not say."""
        return self.state.status if self.state is not None else "unknown"

    def document(self) -> dict[str, Any]:
        """Return it for JSON output."""
        state = {} if self.state is None else self.state.model_dump(mode="json")
        return {
            "absence": None,
            "since": None,
            "last_seen": None,
            "report": {},
            "queue": None,
            **state,
            "name": self.target.name,
            "endpoint_id": self.target.endpoint_id,
            "status": self.status,
            "error": None if self.error is None else str(self.error),
            "local": None if self.target.local is None else asdict(self.target.local),
        }


@dataclass(frozen=True)
class Overview:
    """The status of the service and of endpoints."""

    service: ServiceView
    endpoints: Sequence[EndpointView] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return it for JSON output."""
        return {
            "service": self.service.document(),
            "endpoints": [each.document() for each in self.endpoints],
        }


def collect(name: str | None) -> Overview:
    """Get the status of the service, and of one endpoint or all that the user may use.

    Raises:
        NotFoundError: there is no such endpoint.
        ConfigurationError: it is not on this machine, and no service is configured.
        ServiceUnreachableError: it is not on this machine, and the service is unreachable.
    """
    here = list_endpoints()
    try:
        api = OperatorApi()
    except FluxEndpointError as error:
        return _without_service(ServiceView(None, error), name, here)
    service = _inspect_service(api)
    if service.answer is None:
        return _without_service(service, name, here)
    targets = _all_targets(api, here) if name is None else [find_endpoint(name, api)]
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        views = list(threads.map(lambda target: _inspect_endpoint(api, target), targets))
    lost = views[0].error if name is not None else None
    if lost is not None and views[0].target.local is None:
        raise lost
    return Overview(service, views)


def _inspect_service(api: OperatorApi) -> ServiceView:
    before = time.time()
    try:
        answer = api.status()
    except FluxEndpointError as error:
        return ServiceView(api.url, error)
    after = time.time()
    return ServiceView(api.url, None, answer, after - before, answer.time - (before + after) / 2)


def _without_service(service: ServiceView, name: str | None, here: list[Listed]) -> Overview:
    targets = [EndpointTarget(each.name, each.endpoint_id, each) for each in here]
    if name is not None:
        found = local_endpoint(name, here)
        if found is None:
            assert service.error is not None
            raise service.error
        targets = [found]
    return Overview(service, [EndpointView(target) for target in targets])


def _all_targets(api: OperatorApi, here: list[Listed]) -> list[EndpointTarget]:
    targets = [EndpointTarget(each.name, each.endpoint_id, each) for each in here]
    ids = {each.endpoint_id for each in here}
    others = (each for each in api.endpoints("any") if each.uuid not in ids)
    return targets + [EndpointTarget(each.name, each.uuid) for each in others]


def _inspect_endpoint(api: OperatorApi, target: EndpointTarget) -> EndpointView:
    if target.endpoint_id is None:
        return EndpointView(target)
    try:
        state = api.endpoint_state(target.endpoint_id, fresh=True)
        return EndpointView(target, _as_known_here(state, target))
    except ServiceError as error:
        if error.http_status == 404 and error.code == "ENDPOINT_NOT_FOUND":
            text = f"{api.url} does not know endpoint {target.endpoint_id}"
            return EndpointView(target, error=NotFoundError(text))
        return EndpointView(target, error=error)
    except FluxEndpointError as error:
        return EndpointView(target, error=error)


def _as_known_here(state: EndpointStateAnswer, target: EndpointTarget) -> EndpointStateAnswer:
    """Return an endpoint's state; corrected if this machine knows better than the service."""
    local = target.local
    if state.status == "offline" or local is None or local.pid is not None:
        return state
    # On a shared file system its process may be on another host, whose locks may be invisible here.
    directory = EndpointDirectory(local.name)
    if not _ran_here(directory, state.report):
        return state
    if directory.holder() is not None:  # it has started in the meantime
        return state
    gone = {"status": "offline", "absence": Absence.ENDED, "since": state.last_seen}
    return state.model_copy(update=gone)


def _ran_here(directory: EndpointDirectory, report: Mapping[str, Any]) -> bool:
    """Return whether the process that made a report was on this machine."""
    status = directory.status()
    if status is not None and status.machine is not None and status.pid == report.get("pid"):
        return status.machine == this_machine()
    return bool(report.get("hostname") == socket.gethostname())
