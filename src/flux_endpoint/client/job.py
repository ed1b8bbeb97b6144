"""What a future knows of the job that its task became: its id, its events, who wants them."""

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

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event of a Flux job (RFC 21).

    Attributes:
        name: its name, e.g. `start`.
        timestamp: seconds since the epoch.
        context: what Flux says with it, e.g. `{"status": 0}` with `finish`.
    """

    name: str
    timestamp: float
    context: dict[str, Any] = field(default_factory=dict)


class Owner(Protocol):
    """Whose job it is: what callbacks are called with."""

    task_id: str | None


class JobRecord:
    """A job's id and events, and the callbacks that wait for them.

    Callbacks of one future are never called by two threads at a time, and never under a lock:
    whoever finds calls to make makes them all, in their order, also those that others add
    meanwhile.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.renew_lock()
        self._jobid: int | None = None
        self._error: BaseException | None = None
        self._events: list[JobEvent] = []
        self._seen: set[tuple[str, float]] = set()
        self._jobid_callbacks: list[Callable[..., object]] = []
        self._callbacks: dict[str, list[Callable[..., object]]] = defaultdict(list)
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._caller: int | None = None

    def renew_lock(self) -> None:
        """Take another lock, as a forked child must: nobody there may give back the old one."""
        self._settled = threading.Condition()

    @property
    def has_jobid(self) -> bool:
        """Whether the job's id is known."""
        return self._jobid is not None

    @property
    def is_complete(self) -> bool:
        """Whether nothing more is to come: the last event has, or there never was a job."""
        return self._error is not None or any(e.name == LAST_EVENT for e in self._events)

    # Of the user.

    def jobid(self, timeout: float | None) -> int:
        """Return the id, waiting for it; see `ComputeFuture.jobid`."""
        with self._settled:
            if not self._is_settled() and on_client_thread():
                raise RuntimeError("Cannot wait for a job's id from inside a callback")
            if not self._settled.wait_for(self._is_settled, timeout):
                raise FutureTimeoutError(f"no job id within {timeout} s")
            if self._jobid is not None:
                return self._jobid
            # A new one each time: tracebacks must not pile up in one that is raised again.
            if isinstance(self._error, CancelledError):
                raise CancelledError
            raise RuntimeError(str(self._error)) from self._error

    def add_jobid_callback(self, callback: Callable[..., object]) -> None:
        """Call `callback` once `jobid` does not wait any more."""
        with self._settled:
            if self._is_settled():
                now = self._enqueue([(callback, ())])
            else:
                self._jobid_callbacks.append(callback)
                return
        self._make(now)

    def add_event_callback(self, name: str, callback: Callable[..., object]) -> None:
        """Call `callback` with each event called `name`, past ones first."""
        with self._settled:
            self._callbacks[name].append(callback)
            now = self._enqueue([(callback, (e,)) for e in self._events if e.name == name])
        self._make(now)

    # Of whoever learns of the job.

    def set_jobid(self, jobid: int) -> None:
        """Take the job's id; only the first counts."""
        with self._settled:
            now = self._settle(jobid, None)
        self._make(now)

    def fail(self, error: BaseException) -> None:
        """Say why there is no job, unless there is one."""
        with self._settled:
            now = self._settle(None, error)
        self._make(now)

    def add_events(self, events: Iterable[tuple[int | None, JobEvent]]) -> None:
        """Take events with their job's id; those that are known already are dropped."""
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
        self._jobid, self._error = jobid, error
        self._settled.notify_all()
        return self._enqueue([(callback, ()) for callback in callbacks])

    def _enqueue(self, calls: list[_Call]) -> list[_Call]:
        """Have `calls` made in their turn; return them if the caller is to make them at once.

        A callback that adds another is in the middle of its own turn.
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
            # Our own threads have other callbacks to call; a user's may be interrupted.
            if not isinstance(error, Exception) and not on_client_thread():
                raise
            log.exception("a callback for the job of task %s raised", self._owner.task_id)


_Call = tuple[Callable[..., object], tuple[Any, ...]]
