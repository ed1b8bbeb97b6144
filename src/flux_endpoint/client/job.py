"""The job of a future's task: its id, its events, and the callbacks for them."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any, Protocol

from flux_endpoint.client.threads import on_client_thread
from flux_endpoint.protocol.job_events import EVENTS, LAST_EVENT
from flux_endpoint.protocol.jobid import JobID

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event of a Flux job (RFC 21).

    Attributes:
        name: its name, e.g. `start`.
        timestamp: seconds since the epoch.
        context: its further values, e.g. `{"status": 0}` of `finish`.
    """

    name: str
    timestamp: float
    context: dict[str, Any] = field(default_factory=dict)


class Owner(Protocol):
    """The future of a job's task; the first argument of callbacks.

    Attributes:
        task_id: the task's id, if known.
    """

    task_id: str | None


class JobRecord:
    """A job's id and events, and the callbacks that wait for them.

    Callbacks of one future are never called by two threads at once, and never under the lock. The
    first thread that has calls to make becomes the caller: it makes all calls in order, including
    those that other threads add meanwhile.

    Args:
        owner: the future.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.renew_lock()
        self._jobid: JobID | None = None
        self._error: BaseException | None = None
        self._events: list[JobEvent] = []
        self._seen: set[tuple[str, float]] = set()
        self._jobid_callbacks: list[Callable[..., object]] = []
        self._callbacks: dict[str, list[Callable[..., object]]] = defaultdict(list)
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._caller: int | None = None

    def renew_lock(self) -> None:
        """Replace the lock in a forked child, where nobody may release the old one."""
        self._settled = threading.Condition()

    @property
    def has_jobid(self) -> bool:
        """Whether the job's id is known."""
        return self._jobid is not None

    @property
    def is_complete(self) -> bool:
        """Whether there are no more events: the last one has arrived, or there is no job."""
        return self._error is not None or any(e.name == LAST_EVENT for e in self._events)

    # For the user's threads.

    def jobid(self, timeout: float | None) -> JobID:
        """Wait for the job's id and return it; see `ComputeFuture.jobid`.

        Args:
            timeout: the longest time (s) to wait; `None`: no limit.

        Raises:
            TimeoutError: the id is not known in time.
            CancelledError: the task was cancelled.
            RuntimeError: the task has no job; or a callback calls this, and would wait forever.
        """
        with self._settled:
            if not self._is_settled() and on_client_thread():
                raise RuntimeError("Cannot wait for a job's id from inside a callback")
            if not self._settled.wait_for(self._is_settled, timeout):
                raise FutureTimeoutError(f"no job id within {timeout} s")
            if self._jobid is not None:
                return self._jobid
            # A new error each time: an error that is raised again collects tracebacks.
            if isinstance(self._error, CancelledError):
                raise CancelledError
            raise RuntimeError(str(self._error)) from self._error

    def add_jobid_callback(self, callback: Callable[..., object]) -> None:
        """Call `callback` when the job's id is known, or there will be no job."""
        with self._settled:
            if self._is_settled():
                now = self._enqueue([(callback, ())])
            else:
                self._jobid_callbacks.append(callback)
                return
        self._make(now)

    def add_event_callback(self, name: str, callback: Callable[..., object]) -> None:
        """Call `callback` with each event of one name, past events first.

        Args:
            name: name of the events.
            callback: gets the owner and the event.
        """
        with self._settled:
            self._callbacks[name].append(callback)
            now = self._enqueue([(callback, (e,)) for e in self._events if e.name == name])
        self._make(now)

    # For the streams that receive the job's id and events.

    def set_jobid(self, jobid: int) -> None:
        """Set the job's id, unless it is set already."""
        with self._settled:
            now = self._settle(jobid, None)
        self._make(now)

    def fail(self, error: BaseException) -> None:
        """Set the error that explains why there is no job, unless there is one."""
        with self._settled:
            now = self._settle(None, error)
        self._make(now)

    def add_events(self, events: Iterable[tuple[int | None, JobEvent]]) -> None:
        """Add events that are not known yet.

        Args:
            events: each with its job's id, if known.
        """
        with self._settled:
            now = []
            for jobid, event in events:
                if jobid is not None:
                    now += self._settle(jobid, None)
                key = (event.name, event.timestamp)
                if event.name in EVENTS and key not in self._seen:
                    self._seen.add(key)
                    self._events.append(event)
                    now += self._enqueue([(c, (event,)) for c in self._callbacks[event.name]])
        self._make(now)

    def _is_settled(self) -> bool:
        return self._jobid is not None or self._error is not None

    def _settle(self, jobid: int | None, error: BaseException | None) -> list[_Call]:
        if self._jobid is not None or (jobid is None and self._error is not None):
            return []
        callbacks, self._jobid_callbacks = self._jobid_callbacks, []
        self._jobid = None if jobid is None else JobID(jobid)
        self._error = error
        self._settled.notify_all()
        return self._enqueue([(callback, ()) for callback in callbacks])

    def _enqueue(self, calls: list[_Call]) -> list[_Call]:
        """Append `calls` to the queue; or return them, if the caller must make them at once.

        The latter applies inside a callback: this thread is already making the queue's calls.
        """
        if self._caller == threading.get_ident():
            return calls
        self._calls.extend(calls)
        return []

    def _make(self, now: list[_Call]) -> None:
        for callback, arguments in now:
            self._call(callback, arguments)
        with self._settled:
            if self._caller is not None:
                return
            self._caller = threading.get_ident()
        try:
            while call := self._next():
                self._call(*call)
        except BaseException:
            with self._settled:
                self._caller = None
            raise

    def _next(self) -> _Call | None:
        with self._settled:
            if self._calls:
                return self._calls.popleft()
            self._caller = None
            return None

    def _call(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        try:
            callback(self._owner, *arguments)
        except BaseException as error:
            # The client's own threads must go on; a user's thread may be interrupted (Ctrl-C).
            if not isinstance(error, Exception) and not on_client_thread():
                raise
            log.exception("a callback for the job of task %s raised", self._owner.task_id)


_Call = tuple[Callable[..., object], tuple[Any, ...]]
