"""The REST routes of the service that the client uses."""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Iterable
from typing import Any, Literal

import flux_endpoint
from flux_endpoint.amqp.url import with_port
from flux_endpoint.credentials import Credentials
from flux_endpoint.errors import ServiceError, ServiceUnreachableError
from flux_endpoint.protocol.compatible import COMPATIBLE_GLOBUS_SDK, COMPATIBLE_SDK
from flux_endpoint.protocol.rest import IDEMPOTENCY_HEADER
from flux_endpoint.rest import RestClient

_Json = dict[str, Any]

# Attempts on behalf of callers that retry on their own: few, so that they learn of a failure early.
_BACKGROUND_ATTEMPTS = 2
#: First and longest pause (s) between the attempts of such callers.
PAUSES = 0.25, 15.0


class ServiceApi:
    """The service's REST interface, one method for each route. Thread-safe.

    Every method raises `ServiceError` if the service refuses the request or sends an invalid
    answer, and `ServiceUnreachableError` if the service can't be reached.

    Args:
        credentials: the service's URL and the access token.

    Attributes:
        url: the service's base URL.
        identity: URL and token; equal for all clients of the same service and user.
    """

    def __init__(self, credentials: Credentials) -> None:
        self.url = credentials.service_url
        self.identity = (credentials.service_url, credentials.token)
        self._credentials = credentials
        self._rest = RestClient(credentials)

    def background(self) -> ServiceApi:
        """Return a copy with fewer retries, for callers that retry on their own."""
        api = ServiceApi.__new__(ServiceApi)
        api.__dict__.update(self.__dict__)
        api._rest = RestClient(self._credentials, attempts=_BACKGROUND_ATTEMPTS)
        return api

    def register(self, body: _Json) -> str:
        """Register a function and return its id.

        A repeated request registers the function twice, which is harmless.

        Args:
            body: the request, see `registration_body` and `source_body`.
        """
        answer = self._rest.request("POST", "/v3/functions", json=body, idempotent=True)
        return str(_expected(answer, "function_uuid", str))

    def function(self, function_id: str) -> _Json:
        """Return the document of a registered function."""
        return self._rest.request("GET", f"/v2/functions/{function_id}")

    def delete_function(self, function_id: str) -> _Json:
        """Delete a function."""
        return self._rest.request("DELETE", f"/v2/functions/{function_id}")

    def submit(self, endpoint_id: str, body: _Json | bytes, key: str) -> _Json:
        """Submit tasks.

        Args:
            endpoint_id: the endpoint that runs them.
            body: the request, or its JSON.
            key: idempotency key; a repeated request with the same key returns the first answer.

        Returns:
            The answer; `tasks` has lists of task ids by function id.
        """
        answer = self._post_once(f"/v3/endpoints/{endpoint_id}/submit", body, key)
        _expected(answer, "tasks", dict)
        return answer

    def attach(self, endpoint_id: str, body: _Json, key: str) -> _Json:
        """Create a task that follows a running job.

        Args:
            endpoint_id: the endpoint whose Flux instance runs the job.
            body: the request.
            key: idempotency key, as in `submit`.

        Returns:
            The answer; it has the new task's `task_id`.
        """
        answer = self._post_once(f"/v3/endpoints/{endpoint_id}/attach", body, key)
        _expected(answer, "task_id", str)
        return answer

    def kill(self, task_id: str, signum: int | None = None) -> _Json:
        """End a task, or send a signal to its processes.

        Args:
            task_id: the task.
            signum: number of the signal; `None` ends the task.

        Returns:
            The answer; `delivered` says whether the endpoint received the request.
        """
        return self._rest.request(
            "POST",
            f"/v2/tasks/{task_id}/kill",
            json={} if signum is None else {"signum": signum},
            idempotent=signum is None,
        )

    def set_urgency(self, task_id: str, urgency: int | None) -> _Json:
        """Change the urgency of a task that has not begun.

        Args:
            task_id: the task.
            urgency: 0 (held) to 31; `None`: what it was submitted with.

        Returns:
            The answer; `delivered` says whether the endpoint received the request.
        """
        path = f"/v3/tasks/{task_id}/urgency"
        return self._rest.request("POST", path, json={"urgency": urgency}, idempotent=True)

    def output(self, task_id: str, attempt: int, stdout: int, stderr: int) -> _Json:
        """Wait for what a task prints, for a while; see `operations.OutputAnswer`.

        Args:
            task_id: the task.
            attempt: the attempt at it whose output the caller has.
            stdout: bytes of its standard output that the caller has.
            stderr: the same of its standard error.
        """
        params = {"attempt": str(attempt), "stdout": str(stdout), "stderr": str(stderr)}
        return self._rest.request("GET", f"/v3/tasks/{task_id}/output", params=params)

    def events(self, task_id: str) -> list[_Json]:
        """Return all events so far of a task's job."""
        answer = self._rest.request("GET", f"/v2/tasks/{task_id}/events")
        events: list[_Json] = _expected(answer, "events", list)
        return events

    def open_queue(
        self,
        kind: Literal["results", "events"],
        task_group_id: str,
        client_id: str,
        port: int | None,
    ) -> tuple[str, str]:
        """Open a queue of this client that gets a group's results or job events from now on.

        Args:
            kind: the messages that the queue gets.
            task_group_id: the group.
            client_id: UUID of this client; names the queue.
            port: port of the broker; `None`: the port in the URL that the service returns.

        Returns:
            The URL of the broker, and the queue's name.
        """
        path = f"/v2/taskgroup/{task_group_id}/{kind}"
        request: _Json = {"client_id": client_id}
        if kind == "results":
            request["bundles"] = True
        answer = self._post_repeatable(path, request)
        url: str = _expected(answer, "connection_url", str)
        queue: str = _expected(answer, "queue", str)
        return (url if port is None else with_port(url, port)), queue

    def task(self, task_id: str) -> _Json:
        """Return a task's document."""
        return self._rest.request("GET", f"/v2/tasks/{task_id}")

    def batch_status(self, task_ids: list[str]) -> dict[str, _Json]:
        """Return the documents of tasks, by their ids."""
        body = {"task_ids": task_ids, "output": True}
        answer = self._rest.request("POST", "/v2/batch_status", json=body, idempotent=True)
        results: dict[str, _Json] = _expected(answer, "results", dict)
        return results

    def cached_tasks(self, keys: list[str]) -> dict[str, str]:
        """Return the tasks that had calls and succeeded, by the calls' keys."""
        answer = self._rest.request("POST", "/v3/cache/find", json={"keys": keys}, idempotent=True)
        found: dict[str, str] = _expected(answer, "tasks", dict)
        return found

    def cache_tasks(self, tasks: dict[str, str]) -> None:
        """Note tasks by the keys of their calls."""
        self._rest.request_json("POST", "/v3/cache", json={"tasks": tasks}, idempotent=True)

    def task_group(self, task_group_id: str) -> list[str]:
        """Return the ids of a group's tasks."""
        params = {"create_queue": "false"}  # only official clients consume that queue
        answer = self._rest.request("GET", f"/v2/taskgroup/{task_group_id}", params=params)
        return [str(task["id"]) for task in _expected(answer, "tasks", list)]

    def group_report(self, task_group_id: str) -> _Json:
        """Return how far a group is; see `operations.GroupReport`."""
        return self._rest.request("GET", f"/v3/taskgroups/{task_group_id}")

    def group_tasks(
        self, task_group_id: str, states: Iterable[str], before: str | None
    ) -> tuple[list[str], str | None]:
        """Return the ids of a group's tasks in certain states, the newest first, up to 1,000.

        Args:
            task_group_id: the group.
            states: the states, see `operations.ListedState`.
            before: the place where the list before this one ended; `None`: it is the first.

        Returns:
            The ids, and the place where the next list begins; `None`: there are no more.
        """
        params: _Json = {"task_group_id": task_group_id, "limit": "1000", "state": list(states)}
        if before is not None:
            params["before"] = before
        answer = self._rest.request("GET", "/v3/tasks", params=params)
        found = [str(each["task_id"]) for each in _expected(answer, "tasks", list)]
        after = answer.get("next")
        return found, None if after is None else str(after)

    def result_connection(self) -> tuple[str, str]:
        """Return the URL of the broker, and the prefix of official clients' queue names."""
        answer = self._rest.request("GET", "/v2/get_amqp_result_connection_url")
        url: str = _expected(answer, "connection_url", str)
        prefix: str = _expected(answer, "queue_prefix", str)
        return url, prefix

    def _post_once(self, path: str, body: _Json | bytes, key: str) -> _Json:
        """Send a request that the service carries out once for each `key`."""
        headers = {IDEMPOTENCY_HEADER: key}
        return self._rest.request("POST", path, json=body, headers=headers, idempotent=True)

    def _post_repeatable(self, path: str, body: _Json) -> _Json:
        """Send a repeatable request; HTTP status 429 counts as an unreachable service."""
        try:
            return self._rest.request("POST", path, json=body, idempotent=True)
        except ServiceError as error:
            if error.http_status == 429:
                raise ServiceUnreachableError(str(error)) from error
            raise

    def endpoints(self, role: str | None) -> list[_Json]:
        """Return the documents of endpoints.

        Args:
            role: "any": all endpoints that the user may see; otherwise the user's own.
        """
        params = {"role": role} if role else None
        answer: list[_Json] = self._rest.request_json("GET", "/v2/endpoints", params=params)
        return answer

    def endpoint(self, endpoint_id: str) -> _Json:
        """Return the metadata that an endpoint sent at its registration."""
        return self._rest.request("GET", f"/v2/endpoints/{endpoint_id}")

    def endpoint_status(self, endpoint_id: str) -> _Json:
        """Return whether an endpoint is online, and its last report."""
        return self._rest.request("GET", f"/v2/endpoints/{endpoint_id}/status")

    def allowed_functions(self, endpoint_id: str) -> _Json:
        """Return the functions that an endpoint runs, if it does not run all."""
        return self._rest.request("GET", f"/v3/endpoints/{endpoint_id}/allowed_functions")

    def lock_endpoint(self, endpoint_id: str) -> _Json:
        """Stop an endpoint, and refuse its registration for a while."""
        return self._rest.request("POST", f"/v3/endpoints/{endpoint_id}/lock", idempotent=True)

    def delete_endpoint(self, endpoint_id: str) -> _Json:
        """Delete an endpoint."""
        return self._rest.request("DELETE", f"/v2/endpoints/{endpoint_id}")


def _expected(answer: _Json, key: str, kind: type) -> Any:
    value = answer.get(key)
    if not isinstance(value, kind):
        raise ServiceError(
            f"the service's answer has no usable '{key}': is it of another version?",
            http_status=200,
            code="UNEXPECTED_ANSWER",
            field=key,
        )
    return value


@functools.cache
def user_runtime() -> _Json:
    """Return the description of this program that a submission contains."""
    return {
        "flux_endpoint_version": flux_endpoint.__version__,
        # Configuration templates of official endpoints may read these.
        "globus_compute_sdk_version": COMPATIBLE_SDK,
        "globus_sdk_version": COMPATIBLE_GLOBUS_SDK,
        "python_version": sys.version,
        "python": {
            "version": platform.python_version(),
            "version_description": sys.version,
            "version_tuple": list(sys.version_info[:3]),
            "version_info": list(sys.version_info),
            "implementation": platform.python_implementation(),
            "compiler": platform.python_compiler(),
        },
        "platform": {
            "architecture": list(platform.architecture()),
            "machine": platform.machine(),
            "node": platform.node(),
            "platform": platform.platform(),
            "processor": platform.processor(),
            "release": platform.release(),
        },
    }
