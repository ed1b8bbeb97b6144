"""Job events of one task group, from its event queue into futures."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flux_endpoint.amqp import AmqpConnection, ConnectionState, Consumer, Delivery
from flux_endpoint.amqp.connection import StateChange
from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.backoff import delays
from flux_endpoint.client.future import ComputeFuture, why_no_job
from flux_endpoint.client.job import JobEvent, JobRecord
from flux_endpoint.client.threads import ClientThread, owner_thread, start
from flux_endpoint.errors import InvalidMessageError, ServiceError, ServiceUnreachableError
from flux_endpoint.logs import event
from flux_endpoint.protocol.messages import TaskEvents, unpack

log = logging.getLogger(__name__)

#: Messages that the broker sends ahead; each has the events of some time.
PREFETCH = 64
#: Seconds after a task's end for its events, which come another way than its result.
GRACE = 2.0

_Events = list[tuple[int | None, JobEvent]]


@dataclass(slots=True, eq=False)
class _Followed:
    """A task whose job's events are wanted."""

    future: ComputeFuture
    job: JobRecord
    #: What has come while the history is asked for, `None` when it is not.
    waiting: _Events | None = field(default_factory=list)
    #: The task has ended, and all events of before have been asked for since.
    looked: bool = False


class EventStream:
    """The consumer of its own queue of a task group's job events, for the futures that want them.

    It exists only if somebody wants events. One thread owns all that is mutable here and calls
    the callbacks; the methods that other threads call put a message into its inbox.

    The queue has the events from when it was asked for; what came before is asked of the service,
    and asked again after each reconnect. Events of a task wait while its history is on the way, so
    that callbacks see them in their order. A job is followed until its last event; a task that has
    ended without a job, until `GRACE` seconds after that.

    Args:
        api: the service.
        task_group_id: the group.
        amqp_port: port of the broker, if not the one that the service tells.
        retire: asked when there is nothing to do; if it returns true, the stream ends.
    """

    def __init__(
        self,
        api: ServiceApi,
        task_group_id: str,
        amqp_port: int | None,
        retire: Callable[[EventStream], bool],
    ) -> None:
        self._api = api
        self._group = task_group_id
        self._amqp_port = amqp_port
        self._client_id = str(uuid.uuid4())  # names our queue
        self._retire = retire
        self._closing = threading.Event()
        self._held = False
        self._followed: dict[str, _Followed] = {}
        self._connection: AmqpConnection | None = None
        self._consumer: Consumer | None = None
        self._opened = False
        self._unavailable: ServiceError | None = None
        self._troubled = False
        #: Tasks whose history is to be asked for, and whether that is the last look.
        self._wanted: dict[str, bool] = {}
        self._reopen = False
        self._fetching = False
        self._asking: ClientThread | None = None
        self._thread = owner_thread(
            f"events {task_group_id[:8]}",
            f"the event stream of task group {task_group_id}",
            after_turn=self._consider_the_end,
        )

    def start(self) -> None:
        """Start the thread; the connection follows with the first future."""
        start(self._thread)

    def follow(self, future: ComputeFuture, job: JobRecord) -> None:
        """Fill `job` with the events of `future`'s task, whose id is known."""
        self._thread.post(lambda: self._on_follow(future, job))

    def hold(self) -> None:
        """Do not end before `release`."""
        self._thread.post(self._on_hold)

    def release(self) -> None:
        """End as soon as there is nothing more to expect."""
        self._thread.post(self._on_release)

    def close(self) -> None:
        """End now; whoever waits for a job's id is told so."""
        self._closing.set()
        self._thread.post(self._on_stop)

    @property
    def idle(self) -> bool:
        """Whether nobody has asked for anything that was not begun."""
        return self._thread.is_idle

    def join(self, timeout: float) -> None:
        """Wait for the end."""
        deadline = time.monotonic() + timeout
        self._thread.join(timeout)
        asking = self._asking
        if asking and asking.is_alive() and asking is not threading.current_thread():
            asking.join(max(0.0, deadline - time.monotonic()))

    # All below runs on the stream's thread, unless it says otherwise.

    def _consider_the_end(self) -> float:
        if not (self._held or self._followed) and self._retire(self):
            self._on_stop()
        return math.inf

    def _on_follow(self, future: ComputeFuture, job: JobRecord) -> None:
        task_id = future.task_id or ""
        if task_id in self._followed or job.is_complete:
            return
        if self._unavailable is not None:
            job.fail(_no_events(self._unavailable))
            return
        self._followed[task_id] = _Followed(future, job)
        if self._opened:
            self._fetch(task_id)
        else:
            self._connect()
        future.add_done_callback(lambda _: self._thread.post(lambda: self._on_end(task_id)))

    def _on_end(self, task_id: str) -> None:
        self._thread.after(GRACE, lambda: self._look(task_id))

    def _look(self, task_id: str) -> None:
        if task_id in self._followed:
            self._fetch(task_id, last=True)

    def _on_hold(self) -> None:
        self._held = True

    def _on_release(self) -> None:
        self._held = False
        for task_id, followed in list(self._followed.items()):
            if followed.looked:
                del self._followed[task_id]

    def _on_stop(self) -> None:
        self._closing.set()
        for followed in self._followed.values():
            followed.job.fail(RuntimeError("the client was closed before the job's id was known"))
        self._followed.clear()
        if self._connection is not None:
            self._connection.close()
        self._thread.stop()

    # Events.

    def _on_delivery(self, delivery: Delivery) -> None:
        try:
            message = unpack(delivery.body)
            if not isinstance(message, TaskEvents):
                raise InvalidMessageError(f"expected events, got a {message.message_type} message")
        except InvalidMessageError as error:
            what = f"a message for task group {self._group} can't be read, set aside: {error}"
            event(log, logging.ERROR, what, message_id=delivery.message_id)
            delivery.reject()
            return
        by_task: dict[str, _Events] = {}
        for told in message.events:
            known = JobEvent(told.name, told.timestamp, told.context)
            by_task.setdefault(str(told.task_id), []).append((told.jobid, known))
        for task_id, events in by_task.items():
            followed = self._followed.get(task_id)
            if followed is None:
                continue
            if followed.waiting is not None:
                followed.waiting += events
            else:
                self._take(task_id, followed, events)
        delivery.ack()

    def _on_history(
        self, task_id: str, events: _Events, error: ServiceError | None, last: bool
    ) -> None:
        followed = self._followed.get(task_id)
        if followed is None:
            return
        if task_id not in self._wanted:  # else it is asked for once more
            events, followed.waiting = events + (followed.waiting or []), None
        followed.looked = followed.looked or last
        self._take(task_id, followed, events)
        no_jobs = error is not None and error.code == "EVENTS_NOT_SUPPORTED"  # nor will there be
        if (followed.looked or no_jobs) and not followed.job.has_jobid:
            reason = why_no_job(followed.future) if error is None else _no_events(error)
            followed.job.fail(reason)
            self._followed.pop(task_id, None)

    def _take(self, task_id: str, followed: _Followed, events: _Events) -> None:
        followed.job.add_events(events)
        if followed.job.is_complete or (followed.looked and not self._held):
            self._followed.pop(task_id, None)

    # The queue.

    def _connect(self) -> None:
        if self._connection is None:
            connection = AmqpConnection(
                self._url,
                name=f"events {self._group[:8]}",
                on_state=lambda change: self._thread.post(lambda: self._on_state(change)),
            )
            with suppress(RuntimeError):  # the interpreter is about to exit
                connection.start()
                self._connection = connection

    def _url(self) -> str:
        """Ask for the queue. Runs on the connection's thread, before each attempt."""
        try:
            url, name = self._open_queue()
        except ServiceError as error:
            self._thread.post(partial(self._on_unavailable, error))
            raise
        # Before the connection is up: the queue keeps what comes from now on.
        self._thread.post(lambda: self._on_queue(name))
        return url

    def _open_queue(self) -> tuple[str, str]:
        return self._api.open_queue("events", self._group, self._client_id, self._amqp_port)

    def _on_queue(self, name: str) -> None:
        self._opened = True
        if self._consumer is None and self._connection is not None:
            self._consumer = self._connection.consume(
                name,
                lambda delivery: self._thread.post(lambda: self._on_delivery(delivery)),
                prefetch=PREFETCH,
                on_refused=lambda reason: self._thread.post(lambda: self._on_refused(reason)),
            )
        self._fetch(*self._followed)

    def _on_refused(self, reason: str) -> None:
        event(log, logging.INFO, "no event queue, asking for it", group=self._group, reason=reason)
        self._reopen = True
        self._fetch(*self._followed)

    def _on_unavailable(self, error: ServiceError) -> None:
        """A service that never had a queue for us has none: it knows nothing of events."""
        if self._opened or self._unavailable is not None:
            return
        self._unavailable = error
        event(log, logging.WARNING, f"no job events: {error}")
        for followed in self._followed.values():
            followed.job.fail(_no_events(error))
        self._followed.clear()
        if self._connection is not None:
            self._connection.close()

    def _on_state(self, change: StateChange) -> None:
        if change.state is ConnectionState.CONNECTED:
            if self._troubled:
                event(log, logging.WARNING, f"events: connected to {change.address} again")
            self._troubled = False
        elif change.state is not ConnectionState.CLOSED and not self._troubled:
            self._troubled = True
            if self._unavailable is None:
                text = f"events: no connection to {change.address}, trying again: {change.reason}"
                event(log, logging.WARNING, text)

    # What came before.

    def _fetch(self, *task_ids: str, last: bool = False) -> None:
        for task_id in task_ids:
            followed = self._followed[task_id]
            if followed.waiting is None:
                followed.waiting = []
            self._wanted[task_id] = last or self._wanted.get(task_id, False)
        if (self._wanted or self._reopen) and not self._fetching and not self._closing.is_set():
            wanted, reopen = self._wanted, self._reopen
            self._wanted, self._reopen = {}, False
            ask = partial(self._ask, wanted, reopen)
            self._asking = ClientThread(f"history {self._group[:8]}", ask)
            self._fetching = start(self._asking)

    def _ask(self, wanted: dict[str, bool], reopen: bool) -> None:
        """Runs on a thread of its own, one at a time."""
        try:
            if reopen:
                self._patiently(self._open_queue)
            for task_id, last in wanted.items():
                if self._closing.is_set():
                    break
                error = None
                events: _Events = []
                try:
                    documents = self._patiently(partial(self._api.events, task_id)) or []
                    events = [_from_document(document) for document in documents]
                except ServiceError as caught:
                    error = caught
                    event(log, logging.WARNING, f"asking for a job's events failed: {error}")
                self._thread.post(partial(self._on_history, task_id, events, error, last))
        except ServiceError as error:
            event(log, logging.WARNING, f"asking for the event queue failed: {error}")
        finally:
            self._thread.post(self._on_asked)

    def _patiently(self, call: Callable[[], Any]) -> Any:
        for delay in delays():
            try:
                return call()
            except ServiceUnreachableError:
                if self._closing.wait(delay):
                    break
        return None

    def _on_asked(self) -> None:
        self._fetching = False
        self._fetch()


def _from_document(document: dict[str, Any]) -> tuple[int | None, JobEvent]:
    try:
        jobid, context = document.get("jobid"), document.get("context")
        known = JobEvent(str(document["name"]), float(document["timestamp"]), context or {})
        return (None if jobid is None else int(jobid)), known
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ServiceError(
            f"the service told an event that makes no sense: {document!r}",
            http_status=200,
            code="UNEXPECTED_ANSWER",
            field="events",
        ) from None


def _no_events(error: ServiceError) -> RuntimeError:
    reason = RuntimeError(f"the service tells nothing of jobs: {error}")
    reason.__cause__ = error
    return reason
