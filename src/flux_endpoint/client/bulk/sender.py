"""Sends the calls of a bulk submission while the caller serializes the next ones."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.backlog import SubmissionRoute
from flux_endpoint.client.endpoint_watch import EndpointWatch
from flux_endpoint.client.registry import FunctionRegistration
from flux_endpoint.client.submitter import (
    MAX_BATCH_BYTES,
    Submitter,
    endpoint_state,
    names_a_payload,
    submission_body,
)
from flux_endpoint.client.threads import ClientThread
from flux_endpoint.errors import ServiceError

#: The most calls in a request, and in the first one, which is small so that workers begin early.
MAX_CALLS, FIRST_CALLS = 2048, 128
#: The most requests that wait to be sent: then the iterables are not read any further.
_AHEAD = 2


@dataclass
class Part:
    """Calls of one request.

    Attributes:
        payloads: their packed arguments.
        needs: what they wait for, in the same order; empty: nothing.
        size: characters of the payloads.
    """

    payloads: list[str] = field(default_factory=list)
    needs: list[dict[str, Any] | None] = field(default_factory=list)
    size: int = 0

    def add(self, payload: str, needs: dict[str, Any] | None) -> None:
        """Append a call."""
        self.payloads.append(payload)
        self.size += len(payload)
        if needs and not self.needs:
            self.needs = [None] * (len(self.payloads) - 1)
        if needs or self.needs:
            self.needs.append(needs)

    def is_full(self, calls: int) -> bool:
        """Return whether it has `calls` calls, or as many bytes as a request may have."""
        return len(self.payloads) >= calls or self.size >= MAX_BATCH_BYTES // 2

    def halves(self) -> tuple[Part, Part]:
        """Return the calls in two parts."""
        middle = len(self.payloads) // 2
        return (
            Part(self.payloads[:middle], self.needs[:middle]),
            Part(self.payloads[middle:], self.needs[middle:]),
        )


class BulkSender:
    """Sends calls of one function, in order, on a thread of its own.

    Args:
        api: the service.
        submitter: repeats requests, and counts the tasks.
        route: the settings of all requests.
        function: the function; the first request registers it, if it is new.
        accepted: called on the thread with the ids of each request's tasks.

    Attributes:
        unanswered: number of calls of the latest request, until the service has answered it.
    """

    def __init__(
        self,
        api: ServiceApi,
        submitter: Submitter,
        route: SubmissionRoute,
        function: FunctionRegistration,
        accepted: Callable[[Sequence[str]], None],
    ) -> None:
        self._api = api
        self._submitter = submitter
        self._route = route
        self._function = function
        self._accepted = accepted
        self.unanswered = 0
        self._watch = EndpointWatch()
        self._parts: deque[Part | None] = deque()
        self._ended = self._is_abandoned = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        ClientThread(f"bulk {route.task_group_id[:8]}", self._run).start()

    def put(self, part: Part) -> None:
        """Have a part sent; wait while others wait.

        Raises:
            ServiceError: the service has refused an earlier part.
            ServiceUnreachableError: the service can't be reached.
        """
        self._put(part, lambda: len(self._parts) < _AHEAD or self._ended)

    def finish(self) -> None:
        """Wait until all parts are sent.

        Raises:
            ServiceError: the service has refused one.
            ServiceUnreachableError: the service can't be reached.
        """
        self._put(None, lambda: True)
        with self._changed:
            self._changed.wait_for(lambda: self._ended)
            if self._error is not None:
                raise self._error

    def abandon(self) -> None:
        """Send no more than the present request, and do not repeat that either."""
        with self._changed:
            self._is_abandoned = True
            self._parts.clear()
            self._parts.append(None)
            self._changed.notify_all()

    def _put(self, part: Part | None, may: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(may)
            if self._error is not None:
                raise self._error
            self._parts.append(part)
            self._changed.notify_all()

    # The thread.

    def _run(self) -> None:
        error: Exception | None = None
        try:
            self._register()
            while (part := self._next()) is not None:
                self._send(part)
        except Exception as failure:  # noqa: BLE001 - the caller raises it
            error = failure
        with self._changed:
            self._error, self._ended = error, True
            self._parts.clear()
            self._changed.notify_all()

    def _next(self) -> Part | None:
        with self._changed:
            self._changed.wait_for(lambda: self._parts)
            part = self._parts.popleft()
            self._changed.notify_all()
            return part

    def _register(self) -> None:
        function = self._function
        if function.function_id is None and function.body is not None:
            register = partial(self._api.register, function.body)
            function.registered_as(self._submitter.with_retries(register))

    def _send(self, part: Part) -> None:
        function_id = self._function.function_id or ""
        needs = {function_id: part.needs} if part.needs else {}
        body = submission_body(self._route, {function_id: part.payloads}, needs)
        key = uuid.uuid4().hex
        self.unanswered = len(part.payloads)
        try:
            answer = self._submitter.with_retries(partial(self._request, body, key))
        except ServiceError as error:
            self.unanswered = 0
            too_large = error.http_status == 413 or names_a_payload(error)
            if not too_large or len(part.payloads) == 1:
                raise
            for half in part.halves():
                self._send(half)
            return
        ids = answer["tasks"].get(function_id, [])
        if len(ids) != len(part.payloads):
            raise ServiceError(
                f"the service answered {len(ids)} ids for {len(part.payloads)} tasks",
                http_status=200,
                code="UNEXPECTED_ANSWER",
            )
        state = endpoint_state(self._route, answer)
        if state is not None:
            self._watch.update(state)
        self._submitter.count(len(ids))
        self._accepted(ids)
        self.unanswered = 0

    def _request(self, body: bytes, key: str) -> dict[str, Any]:
        if self._is_abandoned:  # e.g. while the user had too many tasks
            raise RuntimeError("the bulk submission was given up")
        return self._api.submit(self._route.endpoint_id, body, key)
