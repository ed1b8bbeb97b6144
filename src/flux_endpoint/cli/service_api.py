"""The service's routes for operators, as used by the commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from flux_endpoint.credentials import load_credentials
from flux_endpoint.errors import FluxEndpointError, ServiceError
from flux_endpoint.protocol.administration import (
    UserEndpoint,
    UserEndpointsAnswer,
    UserTasksAnswer,
)
from flux_endpoint.protocol.operations import (
    EndpointStateAnswer,
    GroupReport,
    ListedState,
    LoginCodeAnswer,
    OutputAnswer,
    ServiceStatusAnswer,
    TaskRecord,
    TasksAnswer,
)
from flux_endpoint.protocol.rest import (
    CacheAnswer,
    EndpointSummary,
    KillAnswer,
    UrgencyAnswer,
)
from flux_endpoint.rest import RestClient

Answer = TypeVar("Answer", bound=BaseModel)

#: Timeout (s) of one attempt, and the number of attempts.
TIMEOUT = 15.0
ATTEMPTS = 2
#: Seconds for which the service waits for output; less than the timeout.
_WAIT = 10.0
#: The most endpoints that are asked for reports at a time.
_MOST_REFRESHED = 8


class OperatorApi:
    """One method per route; may be used by several threads at once.

    Every method raises `ServiceError` if the service refuses or its answer is invalid, and
    `ServiceUnreachableError` if the service is unreachable.

    Raises:
        ConfigurationError: no service is configured.
    """

    def __init__(self) -> None:
        self.credentials = load_credentials()
        self._rest = RestClient(self.credentials, TIMEOUT, attempts=ATTEMPTS)

    @property
    def url(self) -> str:
        """The service's base URL."""
        return self.credentials.service_url

    def output(self, task_id: str, *, stdout: int, stderr: int, attempt: int = 1) -> OutputAnswer:
        """Wait for what a task prints after these positions of an attempt, for a while."""
        positions = {"attempt": attempt, "stdout": stdout, "stderr": stderr}
        params = {**{name: str(each) for name, each in positions.items()}, "wait": str(_WAIT)}
        path = f"/v3/tasks/{task_id}/output"
        return self._parsed(path, self._rest.request("GET", path, params=params), OutputAnswer)

    def status(self) -> ServiceStatusAnswer:
        """Return the service's status."""
        return self._get("/v3/status", ServiceStatusAnswer)

    def endpoint_state(self, endpoint_id: str, *, fresh: bool = False) -> EndpointStateAnswer:
        """Return an endpoint's status.

        Args:
            endpoint_id: its id.
            fresh: whether to ask it for another report if its last one is not fresh.
        """
        params = {"fresh": "true"} if fresh else None
        return self._get(f"/v3/endpoints/{endpoint_id}/status", EndpointStateAnswer, params)

    def refresh(self, endpoint_ids: Iterable[str]) -> bool:
        """Have endpoints send reports if their last ones are old, for the states of tasks.

        Args:
            endpoint_ids: the endpoints; of very many, only some are asked.

        Returns:
            Whether one was asked.
        """
        asked = list(dict.fromkeys(endpoint_ids))[:_MOST_REFRESHED]

        def ask(endpoint_id: str) -> None:
            with suppress(FluxEndpointError):  # then the states are those of its last report
                self.endpoint_state(endpoint_id, fresh=True)

        if asked:
            with ThreadPoolExecutor(len(asked)) as threads:
                list(threads.map(ask, asked))
        return bool(asked)

    def endpoints(self, role: str = "owner") -> list[EndpointSummary]:
        """Return the user's endpoints; with the role "any", also those that everybody may use."""
        answer = self._rest.request_json("GET", "/v2/endpoints", params={"role": role})
        if not isinstance(answer, list):
            raise self._unexpected("/v2/endpoints", "it is no list")
        return [self._parsed("/v2/endpoints", each, EndpointSummary) for each in answer]

    def tasks(
        self,
        *,
        endpoint_id: str | None = None,
        task_group_id: str | None = None,
        states: frozenset[ListedState] = frozenset(),
        limit: int,
        before: str | None = None,
        follows: bool = True,
        jobid: int | None = None,
        all_users: bool = False,
        user: str | None = None,
    ) -> TasksAnswer | UserTasksAnswer:
        """Return tasks, the newest first; without `follows`, none that only follow a job.

        With `all_users`, or the name of a `user`, they are not only the user's own; that needs an
        administrator's token.
        """
        given = {
            "user": user,
            "endpoint_id": endpoint_id,
            "task_group_id": task_group_id,
            "limit": str(limit),
            "before": before,
            "follows": None if follows else "false",
            "jobid": None if jobid is None else str(int(jobid)),
        }
        params: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if states:
            params["state"] = sorted(states)
        if all_users or user is not None:
            return self._get("/v3/admin/tasks", UserTasksAnswer, params)
        return self._get("/v3/tasks", TasksAnswer, params)

    def all_endpoints(self) -> list[UserEndpoint]:
        """Return the endpoints of all users, up to 1,000; needs an administrator's token."""
        return self._get("/v3/admin/endpoints", UserEndpointsAnswer).endpoints

    def task(self, task_id: str) -> TaskRecord:
        """Return one of the user's tasks, whole."""
        return self._get(f"/v3/tasks/{task_id}", TaskRecord)

    def group(self, group_id: str) -> GroupReport:
        """Return how far one of the user's task groups is."""
        return self._get(f"/v3/taskgroups/{group_id}", GroupReport)

    def login_code(self) -> LoginCodeAnswer:
        """Return a code that logs a browser in to the service's live page."""
        path = "/v3/page/code"
        answer = self._rest.request("POST", path, json={}, idempotent=True)
        return self._parsed(path, answer, LoginCodeAnswer)

    def kill(self, task_id: str) -> KillAnswer:
        """End a task."""
        path = f"/v2/tasks/{task_id}/kill"
        answer = self._rest.request("POST", path, json={}, idempotent=True)
        return self._parsed(path, answer, KillAnswer)

    def set_urgency(self, task_id: str, urgency: int | None) -> UrgencyAnswer:
        """Change a task's urgency; `None`: what it was submitted with."""
        path = f"/v3/tasks/{task_id}/urgency"
        answer = self._rest.request("POST", path, json={"urgency": urgency}, idempotent=True)
        return self._parsed(path, answer, UrgencyAnswer)

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete one of the user's endpoints."""
        self._rest.request("DELETE", f"/v2/endpoints/{endpoint_id}")

    def result_url(self) -> str:
        """Return the broker's URL for clients."""
        answer = self._rest.request("GET", "/v2/get_amqp_result_connection_url")
        return str(answer.get("connection_url") or "")

    def cache(self) -> CacheAnswer:
        """Return which of the user's results are cached."""
        return self._get("/v3/cache", CacheAnswer)

    def clear_cache(self, function_name: str | None) -> CacheAnswer:
        """Forget cached results, of all functions or of those of one name; return how many."""
        params = {} if function_name is None else {"function_name": function_name}
        answer = self._rest.request("DELETE", "/v3/cache", params=params)
        return self._parsed("/v3/cache", answer, CacheAnswer)

    def _get(
        self, path: str, kind: type[Answer], params: Mapping[str, Any] | None = None
    ) -> Answer:
        try:
            answer = self._rest.request("GET", path, params=params)
        except ServiceError as error:
            if error.code == "NOT_FOUND" and path.startswith("/v3/admin/"):
                raise ServiceError(
                    f"the service at {self.url} shows nothing of other users with the token from "
                    f"{self.credentials.source}: that needs a token of the scope 'admin' "
                    "(flux-endpoint service token create USER --scope admin), and a service as new "
                    "as this command",
                    http_status=error.http_status,
                    code="NOT_AN_ADMINISTRATOR",
                ) from error
            if error.code == "NOT_FOUND":  # the route is unknown, not the requested object
                raise ServiceError(
                    f"the service at {self.url} does not know GET {path}: is that URL (from "
                    f"{self.credentials.source}) right, and the service as new as this command?",
                    http_status=error.http_status,
                    code="SERVICE_TOO_OLD",
                ) from error
            raise
        return self._parsed(path, answer, kind)

    def _parsed(self, path: str, answer: Any, kind: type[Answer]) -> Answer:
        try:
            return kind.model_validate(answer)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise self._unexpected(path, f"{where}: {first['msg']}") from error

    def _unexpected(self, path: str, reason: str) -> ServiceError:
        return ServiceError(
            f"the answer of {self.url}{path} makes no sense ({reason}): is the service of another "
            "release?",
            http_status=200,
            code="UNEXPECTED_ANSWER",
        )
