"""Results of one task group, from a queue of our own into futures."""

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

#: Early results that are kept until the submission that they belong to is answered.
MAX_EARLY = 128
#: Seconds without a result after which the service is asked whether the endpoints of open tasks are
#: online; at first, and at most. And how many of them, at most.
QUIET, MAX_QUIET, MAX_SILENT = 60.0, 600.0, 16
#: Tasks whose state is asked in one request.
STATUS_CHUNK = 128


class ResultStream(GroupStream):
    """The consumer of its own queue of a task group's results, and the futures that wait for them.

    The queue gets each result of the group, also those that only other clients wait for.

    A result may arrive before the answer to the submission that tells us its task's id. While a
    submission is under way, results of unknown tasks are kept, unacknowledged; without one they
    belong to another client, and are dropped.

    The queue is opened beside the first submission.
    """

    kind = "results"
    prefetch = 2 * MAX_EARLY
    bundles = True

    def __init__(self, api: ServiceApi, task_group_id: str, amqp_port: int | None) -> None:
        super().__init__(api, task_group_id, amqp_port)
        # More than one if a task was reloaded before the answer to its submission came.
        self._open: dict[str, tuple[ComputeFuture, ...]] = {}
        self._early: dict[str, tuple[TaskEnd, Delivery]] = {}
        self._submissions = 0
        #: Results of a submission that is under way may have been missed.
        self._missed = False
        #: Tasks to ask the service for.
        self._wanted: dict[str, None] = {}
        #: Endpoints to ask about, after so many seconds without a result.
        self._silent: set[str] = set()
        self._quiet = Backoff(QUIET, MAX_QUIET, jitter=0)
        #: Monotonic time at which that is over; infinity: nothing is waited for yet.
        self._quiet_at = math.inf
        self._endpoints = EndpointWatch()

    def submission_begins(self) -> None:
        """Expect results of tasks whose ids are not known yet."""
        self._thread.post(self._on_begin)

    def submission_ends(
        self, accepted: list[Accepted], endpoint: EndpointState | None = None
    ) -> None:
        """End what `submission_begins` began; the ids of `accepted` may be told from now on.

        Args:
            accepted: the tasks.
            endpoint: what the service told of their endpoint.
        """
        self._thread.post(lambda: self._on_end(accepted, endpoint))

    def follow(self, futures: list[ComputeFuture]) -> list[ComputeFuture]:
        """Follow tasks that were submitted some other time.

        Returns:
            For each, the future that resolves: one that waits for that task already, or the given.
        """
        return self._thread.call(lambda: self._on_follow(futures))

    # All below runs on the stream's thread.

    @property
    def _is_awaited(self) -> bool:
        return bool(self._open or self._submissions)

    def _next_look(self) -> float:
        """Return the seconds until it has been quiet for too long."""
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
            self._endpoints.hear(endpoint)
        for each in accepted:
            each.tell()  # before the future may be done
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
            self._want(each.task_id for each in accepted)

    def _on_follow(self, futures: list[ComputeFuture]) -> list[ComputeFuture]:
        followed = [self._open.setdefault(f.task_id or "", (f,))[0] for f in futures]
        self._connect()
        self._want(future.task_id or "" for future in futures)
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
            event(log, logging.DEBUG, "result of a task not followed here", task_id=end.task_id)

    def _keep_early(self, end: TaskEnd, delivery: Delivery) -> None:
        replaced = self._early.pop(end.task_id, None)
        self._early[end.task_id] = (end, delivery)
        if replaced is None and len(self._early) > MAX_EARLY:
            # Acknowledge one, or the prefetch fills up; the service still knows its result.
            replaced = self._early.pop(next(iter(self._early)))
            self._missed = True
        if replaced is not None:
            replaced[1].ack()

    # What the queue does not tell, the service does.

    def _on_quiet(self) -> None:
        """Nothing has come for a while: is there anybody who could send it?"""
        waited_for = (future.endpoint_id for each in self._open.values() for future in each)
        self._silent = set(islice({id_ for id_ in waited_for if id_}, MAX_SILENT))
        self._ask_service()

    def _catch_up(self) -> None:
        self._missed = self._missed or bool(self._submissions)
        self._want(self._open)

    def _on_state(self, change: StateChange) -> None:
        if change.state not in (ConnectionState.CONNECTED, ConnectionState.CLOSED):
            # Until the broker lets us in again, each attempt to connect is a time to look.
            self._catch_up()
        super()._on_state(change)

    def _want(self, ids: Iterable[str]) -> None:
        self._wanted.update(dict.fromkeys(ids))
        self._ask_service()

    def _questions(self) -> list[Question]:
        api = self._api
        ids = [task_id for task_id in self._wanted if task_id in self._open]
        endpoints, self._silent = self._silent, set()
        self._wanted.clear()
        chunks = [ids[at : at + STATUS_CHUNK] for at in range(0, len(ids), STATUS_CHUNK)]
        return [
            *(Question(partial(api.endpoint_status, e), partial(self._hear, e)) for e in endpoints),
            *(Question(partial(api.batch_status, chunk), self._on_documents) for chunk in chunks),
        ]

    def _hear(self, endpoint_id: str, answer: dict[str, Any]) -> None:
        state = state_from(endpoint_id, answer.get("status"), answer.get("last_seen"))
        if state is not None:
            self._endpoints.hear(state)

    def _on_documents(self, documents: dict[str, dict[str, Any]]) -> None:
        for task_id, document in documents.items():
            end = from_document({**document, "task_id": task_id})
            if end is not None:
                _resolve_all(self._open.pop(task_id, ()), end)


def _resolve_all(futures: tuple[ComputeFuture, ...], end: TaskEnd) -> None:
    for future in futures:
        resolve(future, end)
