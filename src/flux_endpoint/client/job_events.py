"""Receives the job events of a task group from their queue and adds them to the futures."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flux_endpoint.amqp import Delivery
from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.future import ComputeFuture, why_no_job
from flux_endpoint.client.group_stream import GroupStream, Question
from flux_endpoint.client.job import JobEvent, JobRecord
from flux_endpoint.errors import InvalidMessageError, ServiceError
from flux_endpoint.logs import event
from flux_endpoint.protocol.messages import TaskEvents, unpack

log = logging.getLogger(__name__)

#: Time (s) after a task's end for its last events, which arrive separately from its result.
GRACE = 2.0

_Events = list[tuple[int | None, JobEvent]]


@dataclass(slots=True, eq=False)
class _Followed:
    """A task whose job's events are wanted."""

    future: ComputeFuture
    job: JobRecord
    #: Events that have arrived during a request for the history; `None` when there is no request.
    waiting: _Events | None = field(default_factory=list)
    #: Whether the task has ended and the history was requested after that.
    looked: bool = False


class EventStream(GroupStream):
    """Consumes a task group's job events, for the futures that want them.

    It exists only if there is such a future. Its thread calls the callbacks.

    The queue gets the events from the time when it was opened. The stream requests earlier events
    (the history) from the service, and again after each reconnect. Meanwhile, new events of the
    task wait, so that callbacks get all events in order. A job is followed until its last event,
    and a task that has ended without a job until `GRACE` seconds later.
    """

    kind = "events"
    prefetch = 64  # each message has many events

    def __init__(self, api: ServiceApi, task_group_id: str, amqp_port: int | None) -> None:
        super().__init__(api, task_group_id, amqp_port)
        self._followed: dict[str, _Followed] = {}
        self._unavailable: ServiceError | None = None
        #: Tasks whose history must be requested, and whether it is the last request.
        self._wanted: dict[str, bool] = {}

    def follow(self, future: ComputeFuture, job: JobRecord) -> None:
        """Add the events of a task's job to `job`, as they arrive.

        Args:
            future: the task's future; its `task_id` is known.
            job: the record.
        """
        self._thread.post(lambda: self._on_follow(future, job))

    def release(self) -> None:  # noqa: D102 - as the base class says
        self._thread.post(self._forget_ended)

    # The methods below run on the stream's thread, unless they say otherwise.

    @property
    def _is_awaited(self) -> bool:
        return bool(self._followed)

    def _has_work(self) -> bool:
        return self._is_awaited

    def _on_follow(self, future: ComputeFuture, job: JobRecord) -> None:
        task_id = future.task_id or ""
        if task_id in self._followed or job.is_complete:
            return
        if self._unavailable is not None:
            job.fail(_no_events(self._unavailable))
            return
        self._followed[task_id] = _Followed(future, job)
        if self._consumer is not None:
            self._request(task_id)
        else:
            self._connect()
        future.add_done_callback(lambda _: self._thread.post(lambda: self._on_end(task_id)))

    def _on_end(self, task_id: str) -> None:
        self._thread.after(GRACE, lambda: self._check(task_id))

    def _check(self, task_id: str) -> None:
        if task_id in self._followed:
            self._request(task_id, last=True)

    def _forget_ended(self) -> None:
        for task_id, followed in list(self._followed.items()):
            if followed.looked:
                del self._followed[task_id]

    def _on_stop(self) -> None:
        self._fail_all(RuntimeError("the client was closed before the job's id was known"))
        super()._on_stop()

    def _fail_all(self, error: RuntimeError) -> None:
        for followed in self._followed.values():
            followed.job.fail(error)
        self._followed.clear()

    # Events.

    def _take(self, delivery: Delivery) -> None:
        message = unpack(delivery.body)
        if not isinstance(message, TaskEvents):
            raise InvalidMessageError(f"expected events, got a {message.message_type} message")
        by_task: dict[str, _Events] = {}
        for each in message.events:
            known = JobEvent(each.name, each.timestamp, each.context)
            by_task.setdefault(str(each.task_id), []).append((each.jobid, known))
        for task_id, events in by_task.items():
            followed = self._followed.get(task_id)
            if followed is None:
                continue
            if followed.waiting is not None:
                followed.waiting += events
            else:
                self._add(task_id, followed, events)
        delivery.ack()

    def _on_history(
        self, task_id: str, last: bool, events: _Events, error: ServiceError | None = None
    ) -> None:
        followed = self._followed.get(task_id)
        if followed is None:
            return
        if task_id not in self._wanted:  # otherwise another request will follow
            events, followed.waiting = events + (followed.waiting or []), None
        followed.looked = followed.looked or last
        self._add(task_id, followed, events)
        # The endpoint will never send job events.
        no_jobs = error is not None and error.code == "EVENTS_NOT_SUPPORTED"
        if (followed.looked or no_jobs) and not followed.job.has_jobid:
            reason = why_no_job(followed.future) if error is None else _no_events(error)
            followed.job.fail(reason)
            self._followed.pop(task_id, None)

    def _add(self, task_id: str, followed: _Followed, events: _Events) -> None:
        followed.job.add_events(events)
        if followed.job.is_complete or (followed.looked and not self.users):
            self._followed.pop(task_id, None)

    # The history.

    def _url(self) -> str:
        """Open the queue, or fail the futures. Runs on a separate thread."""
        try:
            return super()._url()
        except ServiceError as error:
            self._thread.post(partial(self._on_unavailable, error))
            raise

    def _on_unavailable(self, error: ServiceError) -> None:
        """Fail the futures if the service refuses the very first queue: it has no job events."""
        if self._consumer is not None or self._unavailable is not None:
            return
        self._unavailable = error
        event(log, logging.WARNING, f"no job events: {error}")
        self._fail_all(_no_events(error))
        if self._connection is not None:
            self._connection.close()

    def _catch_up(self) -> None:
        self._request(*self._followed)

    def _request(self, *task_ids: str, last: bool = False) -> None:
        for task_id in task_ids:
            followed = self._followed[task_id]
            if followed.waiting is None:
                followed.waiting = []
            self._wanted[task_id] = last or self._wanted.get(task_id, False)
        self._ask_service()

    def _questions(self) -> list[Question]:
        wanted, self._wanted = self._wanted, {}
        return [
            Question(
                partial(self._history, task_id),
                partial(self._on_history, task_id, last),
                partial(self._on_history, task_id, last, []),
            )
            for task_id, last in wanted.items()
        ]

    def _history(self, task_id: str) -> _Events:
        """Request a task's events from the service. Runs on a separate thread."""
        return [_from_document(document) for document in self._api.events(task_id)]


def _from_document(document: dict[str, Any]) -> tuple[int | None, JobEvent]:
    try:
        jobid, context = document.get("jobid"), document.get("context")
        known = JobEvent(str(document["name"]), float(document["timestamp"]), context or {})
        return (None if jobid is None else int(jobid)), known
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ServiceError(
            f"the service returned an invalid event: {document!r}",
            http_status=200,
            code="UNEXPECTED_ANSWER",
            field="events",
        ) from None


def _no_events(error: ServiceError) -> RuntimeError:
    reason = RuntimeError(f"the service has no job events: {error}")
    reason.__cause__ = error
    return reason
