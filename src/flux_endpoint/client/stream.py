"""Receives the results of a task group from their queue and resolves the futures."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

from flux_endpoint.amqp import ConnectionState, Delivery
from flux_endpoint.amqp.connection import StateChange
from flux_endpoint.backoff import Backoff
from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.endpoint_watch import EndpointState, EndpointWatch, state_from
from flux_endpoint.client.future import Accepted, ComputeFuture
from flux_endpoint.client.group_stream import GroupStream, Question
from flux_endpoint.client.results import TaskEnd, from_document, from_message, resolve
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

#: The most early results, i.e. results that arrive before the answer to their submission.
MAX_EARLY = 128
#: After `QUIET` seconds without a result, and then at intervals up to `MAX_QUIET` seconds, the
#: stream asks the service whether the endpoints of open tasks are online: at most `MAX_SILENT`.
QUIET, MAX_QUIET, MAX_SILENT = 60.0, 600.0, 16
#: The most tasks in one request for states.
STATUS_CHUNK = 128


class ResultStream(GroupStream):
    """Consumes a task group's results and resolves the futures that wait for them.

    The queue gets all results of the group, including those that only other clients wait for.

    A result may arrive early: before the answer to its task's submission, which has the task's id.
    During a submission, the stream keeps results of unknown tasks and does not acknowledge them. At
    other times, such results belong to other clients, and the stream drops them.

    The first submission opens the queue concurrently.
    """

    kind = "results"
    prefetch = 2 * MAX_EARLY
    bundles = True

    def __init__(self, api: ServiceApi, task_group_id: str, amqp_port: int | None) -> None:
        super().__init__(api, task_group_id, amqp_port)
        # A task that was reloaded before the answer to its submission arrived has two futures.
        self._open: dict[str, tuple[ComputeFuture, ...]] = {}
        self._early: dict[str, tuple[TaskEnd, Delivery]] = {}
        self._submissions = 0
        #: Whether results of a present submission may have been missed.
        self._missed = False
        #: Tasks whose state must be requested from the service.
        self._wanted: dict[str, None] = {}
        #: Endpoints whose state must be requested, because no results have arrived for a while.
        self._silent: set[str] = set()
        self._quiet = Backoff(QUIET, MAX_QUIET, jitter=0)
        #: Monotonic time (s) of the next check of the endpoints; infinity: no task is open.
        self._quiet_at = math.inf
        self._endpoints = EndpointWatch()

    def submission_begins(self) -> None:
        """Begin to keep results of unknown tasks. Call it before a submission."""
        self._thread.post(self._on_begin)

    def submission_ends(
        self, accepted: list[Accepted], endpoint: EndpointState | None = None
    ) -> None:
        """Follow the tasks of a submission. Call it once for each `submission_begins`.

        Afterwards, the caller may publish the ids of the tasks.

        Args:
            accepted: the tasks that the service has accepted.
            endpoint: the state of their endpoint, if known.
        """
        self._thread.post(lambda: self._on_end(accepted, endpoint))

    def follow(self, futures: list[ComputeFuture]) -> list[ComputeFuture]:
        """Follow tasks that were submitted earlier, e.g. by another process.

        Args:
            futures: a future for each task.

        Returns:
            For each task, the future that will be resolved: an existing one, or the given one.
        """
        return self._thread.call(lambda: self._on_follow(futures))

    # The methods below run on the stream's thread.

    @property
    def _is_awaited(self) -> bool:
        return bool(self._open or self._submissions)

    def _next_check(self) -> float:
        """Return the seconds until the next check of the endpoints."""
        now = time.monotonic()
        if not self._open:
            self._quiet.reset()
            self._quiet_at = math.inf
        elif now >= self._quiet_at or math.isinf(self._quiet_at):
            if now >= self._quiet_at:
                self._on_quiet()
            self._quiet_at = now + next(self._quiet)
        return self._quiet_at - now

    def _on_begin(self) -> None:
        self._submissions += 1
        self._connect()

    def _on_end(self, accepted: list[Accepted], endpoint: EndpointState | None) -> None:
        self._submissions -= 1
        if endpoint is not None:
            self._endpoints.update(endpoint)
        for each in accepted:
            each.set_ids()  # sets its ids, before the future may be done
            early = self._early.pop(each.task_id, None)
            waiting = (each.future, *self._open.pop(each.task_id, ()))
            if early is None:
                self._open[each.task_id] = waiting
            else:
                _resolve_all(waiting, early[0])
                early[1].ack()
        if not self._submissions:
            for _, delivery in self._early.values():
                delivery.ack()
            self._early.clear()
        if self._missed:
            self._missed = bool(self._submissions)
            self._request(each.task_id for each in accepted)

    def _on_follow(self, futures: list[ComputeFuture]) -> list[ComputeFuture]:
        followed = [self._open.setdefault(f.task_id or "", (f,))[0] for f in futures]
        self._connect()
        self._request(future.task_id or "" for future in futures)
        return followed

    def _take(self, delivery: Delivery) -> None:
        end = from_message(delivery.body, delivery.timestamp)
        waiting = self._open.pop(end.task_id, ())
        if waiting:
            self._quiet.reset()
            self._quiet_at = math.inf
            _resolve_all(waiting, end)
            delivery.ack()
        elif self._submissions:
            self._keep_early(end, delivery)
        else:
            delivery.ack()
            event(log, logging.DEBUG, "result of an untracked task", task_id=end.task_id)

    def _keep_early(self, end: TaskEnd, delivery: Delivery) -> None:
        replaced = self._early.pop(end.task_id, None)
        self._early[end.task_id] = (end, delivery)
        if replaced is None and len(self._early) > MAX_EARLY:
            # Acknowledge the oldest: unacknowledged messages would use up the prefetch limit, and
            # its result can still be requested from the service.
            replaced = self._early.pop(next(iter(self._early)))
            self._missed = True
        if replaced is not None:
            replaced[1].ack()

    # Requests to the service, for results that the queue does not have.

    def _on_quiet(self) -> None:
        """Ask whether the endpoints are online: no results have arrived for a while."""
        waited_for = (future.endpoint_id for each in self._open.values() for future in each)
        self._silent = set(islice({id_ for id_ in waited_for if id_}, MAX_SILENT))
        self._ask_service()

    def _catch_up(self) -> None:
        self._missed = self._missed or bool(self._submissions)
        self._request(self._open)

    def _on_state(self, change: StateChange) -> None:
        if change.state not in (ConnectionState.CONNECTED, ConnectionState.CLOSED):
            # Without the broker, request the results from the service at each attempt to connect.
            self._catch_up()
        super()._on_state(change)

    def _request(self, ids: Iterable[str]) -> None:
        self._wanted.update(dict.fromkeys(ids))
        self._ask_service()

    def _questions(self) -> list[Question]:
        api = self._api
        ids = [task_id for task_id in self._wanted if task_id in self._open]
        endpoints, self._silent = self._silent, set()
        self._wanted.clear()
        chunks = [ids[at : at + STATUS_CHUNK] for at in range(0, len(ids), STATUS_CHUNK)]
        return [
            *(
                Question(partial(api.endpoint_status, e), partial(self._on_status, e))
                for e in endpoints
            ),
            *(Question(partial(api.batch_status, chunk), self._on_documents) for chunk in chunks),
        ]

    def _on_status(self, endpoint_id: str, answer: dict[str, Any]) -> None:
        state = state_from(endpoint_id, answer.get("status"), answer.get("last_seen"))
        if state is not None:
            self._endpoints.update(state)

    def _on_documents(self, documents: dict[str, dict[str, Any]]) -> None:
        for task_id, document in documents.items():
            end = from_document({**document, "task_id": task_id})
            if end is not None:
                _resolve_all(self._open.pop(task_id, ()), end)


def _resolve_all(futures: tuple[ComputeFuture, ...], end: TaskEnd) -> None:
    for future in futures:
        resolve(future, end)
