"""Registers an endpoint with the service, and keeps its id and the broker's URL."""

from __future__ import annotations

import getpass
import json
import logging
import platform
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from flux_endpoint import __version__, paths
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.errors import ConfigurationError, FluxEndpointError, ServiceError
from flux_endpoint.logs import event
from flux_endpoint.protocol.operations import TakenTasksAnswer
from flux_endpoint.protocol.queues import EndpointQueues
from flux_endpoint.protocol.run_options import RUN_OPTIONS, RUN_OPTIONS_KEY
from flux_endpoint.rest import RestClient

log = logging.getLogger(__name__)


class Registration:
    """Registers one endpoint: the first time as a new one, later with the id in `endpoint.json`.

    Args:
        rest: client of the service.
        directory: the endpoint's directory, which has `endpoint.json`.
        request: the endpoint's description for the service; see `registration_request`.
    """

    def __init__(self, rest: RestClient, directory: Path, request: Mapping[str, Any]) -> None:
        self._rest = rest
        self._file = directory / "endpoint.json"
        self._request = dict(request)

    def register(self) -> EndpointQueues:
        """Register, and return how to reach the broker.

        Raises:
            ServiceError: the service refused; the text says what to do.
            ServiceUnreachableError: the service can't be reached now; try again later.
            ConfigurationError: `endpoint.json` is damaged.
        """
        endpoint_id = read_endpoint_id(self._file)
        if endpoint_id is None:
            answer = self._rest.request("POST", "/v3/endpoints", json=self._request)
        else:
            answer = self._register_again(endpoint_id)
        url = self._rest.credentials.service_url
        queues = _parse_answer(answer, url)
        if endpoint_id not in {None, queues.endpoint_id}:
            raise FluxEndpointError(
                f"{url} answered the registration of endpoint {endpoint_id} with another id, "
                f"{queues.endpoint_id}: this is an error of the service; inform its operator"
            )
        # The service may have a new address.
        text = json.dumps({"endpoint_id": queues.endpoint_id, "service_url": url}, indent=2) + "\n"
        if endpoint_id is None or self._file.read_text(encoding="utf-8") != text:
            paths.write_private(self._file, text)
        return queues

    def taken(self, endpoint_id: str) -> list[str]:
        """Return the unfinished tasks that the endpoint took, according to the service.

        Raises:
            ServiceError: the service refused: ENDPOINT_IN_USE while an agent has the task queue.
            ServiceUnreachableError: service or broker can't answer now; try again later.
        """
        answer = self._rest.request("GET", f"/v3/endpoints/{endpoint_id}/taken")
        try:
            return TakenTasksAnswer.model_validate(answer).tasks
        except ValidationError as error:
            raise ServiceError(
                f"{self._rest.credentials.service_url} answered with something else than the tasks "
                f"of endpoint {endpoint_id}",
                http_status=200,
                code="NOT_A_FLUX_ENDPOINT_SERVICE",
            ) from error

    def _register_again(self, endpoint_id: str) -> dict[str, Any]:
        try:
            return self._rest.request("PUT", f"/v3/endpoints/{endpoint_id}", json=self._request)
        except ServiceError as error:
            if error.code == "ENDPOINT_NOT_FOUND" or error.http_status == 403:
                knows = "does not know endpoint" if error.http_status == 404 else "refuses endpoint"
                raise error.saying(
                    f"{self._rest.credentials.service_url} {knows} {endpoint_id} ({error}). If it "
                    f"is the right service, delete {self._file} to register as a new endpoint; "
                    "users then need the new id"
                ) from error
            raise


class BrokerUrl:
    """Supplies the broker's URL to `AmqpConnection` before each attempt.

    Credentials expire and brokers move: after a few failures it registers again to get a new URL.
    Belongs to the connection's thread, except `ask`.

    Attributes:
        on_gone: called with the reason when the service has said twice, `interval` seconds apart,
            that the endpoint does not exist any more, or that its token is not valid.
        on_locked: called when the service refuses the registration for a while, since somebody has
            stopped the endpoint there.

    Args:
        queues: the answer to the last registration.
        register: registers again.
        max_failures: number of failed attempts in a row before a new URL is requested.
        interval: the least seconds between two registrations.
    """

    def __init__(
        self,
        queues: EndpointQueues,
        register: Callable[[], EndpointQueues],
        *,
        max_failures: int = 2,
        interval: float = 15.0,
    ) -> None:
        self._url = queues.task_queue_info.connection_url
        self._register = register
        self._max_failures = max_failures
        self._interval = interval
        self._attempts = 0
        self._asked = float("-inf")
        self._asking = threading.Lock()
        self._is_gone = False
        self.on_gone: Callable[[str], None] = lambda _reason: None
        self.on_locked: Callable[[], None] = lambda: None

    def __call__(self) -> str:
        """Return the URL for the next attempt."""
        self._attempts += 1
        if self._attempts > self._max_failures:
            self._renew()
        return self._url

    def ask(self) -> None:
        """Register again on a thread, unless that was done just now. Returns at once."""
        threading.Thread(target=self._renew, name="registration", daemon=True).start()

    def _renew(self) -> None:
        with self._asking:
            if time.monotonic() - self._asked < self._interval:
                return
            self._asked = time.monotonic()
            try:
                self._url = self._register().task_queue_info.connection_url
            except FluxEndpointError as error:
                # The next attempt with the old URL may well succeed.
                event(log, logging.WARNING, "could not register again", reason=str(error))
                if isinstance(error, ServiceError) and error.code == "ENDPOINT_LOCKED":
                    self.on_locked()
                says_gone = isinstance(error, ServiceError) and error.code in _GONE
                if says_gone and self._is_gone:
                    self.on_gone(str(error))
                # A failure between the two refusals says neither.
                self._is_gone = self._is_gone or says_gone
            else:
                self._is_gone = False

    def connected(self) -> None:
        """Record that the URL works."""
        self._attempts = 0


#: Error codes of a service that does not know the endpoint.
_GONE = frozenset({"UNAUTHORIZED", "ENDPOINT_NOT_FOUND"})


def last_reporter(rest: RestClient, endpoint_id: str) -> str:
    """Return which process reported last for an endpoint, as text; empty if unknown."""
    try:
        answer = rest.request("GET", f"/v2/endpoints/{endpoint_id}/status")
    except FluxEndpointError:
        return ""
    report = answer.get("details")
    if not isinstance(report, dict) or "pid" not in report:
        return ""
    return f"the last report is from pid {report['pid']} on {report.get('hostname')}"


def read_endpoint_id(file: Path) -> str | None:
    """Return the id in `endpoint.json`, or `None` if the endpoint was never registered.

    Raises:
        ConfigurationError: the file is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return str(UUID(content["endpoint_id"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{file} must hold the endpoint's id, as in "
            f'{{"endpoint_id": "<UUID>"}}, but is damaged ({type(error).__name__}: {error}). '
            "Restore it, or delete it to register as a new endpoint"
        ) from None


def registration_request(name: str, config: EndpointConfig, config_text: str) -> dict[str, Any]:
    """Return the body of an endpoint's registration.

    Args:
        name: the endpoint's name.
        config: its configuration.
        config_text: the text of `config.yaml`, which the service shows to the owner.
    """
    request = {
        "endpoint_name": name,
        "display_name": config.display_name or name,
        "multi_user": False,
        "public": config.public,
        "metadata": {
            **common_metadata(config_text),
            "flux_endpoint_version": __version__,
            "tasks_per_message": config.tasks_per_message,
            "reports_on_request": True,
            "output_on_request": True,
            "user_config_template": "",
            "user_config_schema": None,
        },
    }
    for key in ("allowed_functions", "users", "groups"):
        if (value := getattr(config, key)) is not None:
            request[key] = value
    return request


def common_metadata(config_text: str) -> dict[str, Any]:
    """Return the metadata that endpoints of any kind have.

    Args:
        config_text: the text of `config.yaml`.
    """
    return {
        "endpoint_version": __version__,
        "python_version": platform.python_version(),
        "hostname": socket.gethostname(),
        "local_user": _user(),
        "endpoint_config": config_text,
        RUN_OPTIONS_KEY: list(RUN_OPTIONS),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in containers
        return ""


def _parse_answer(answer: dict[str, Any], service_url: str) -> EndpointQueues:
    try:
        queues = EndpointQueues.model_validate(answer)
        UUID(queues.endpoint_id)
        for info in (queues.result_queue_info, queues.heartbeat_queue_info):
            for key in ("exchange", "routing_key"):
                if not isinstance(info.queue_publish_kwargs.get(key), str):
                    reason = f"queue_publish_kwargs of {info.exchange} has no {key}"
                    raise ValueError(reason)  # noqa: TRY004 - it is the value of an answer
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        reason = str(error)
    else:
        return queues
    raise FluxEndpointError(
        f"{service_url} answered the registration with something else than queues ({reason}): "
        "is it a Flux Endpoint service of a fitting release?"
    )
