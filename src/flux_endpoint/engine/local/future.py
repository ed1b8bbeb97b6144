"""The future of a job on the embedded executor."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Self

from flux_endpoint.protocol import job_events
from flux_endpoint.protocol.job_events import EventRecord

log = logging.getLogger(__name__)


class LocalExecutorFuture(concurrent.futures.Future[int]):
    """A `concurrent.futures.Future` for one job, with the interface of `FluxExecutorFuture`.

    Its result is the highest exit status of the job's processes, or `-signum` if a signal ended the
    job shell. Exceptions of callbacks are logged and otherwise ignored. Events may follow after the
    future is done.

    Args:
        owning_thread_id: `ident` of the thread that will complete the future. That thread runs the
            callbacks; waiting for the future on it raises RuntimeError.
    """

    #: Event names that `add_event_callback` accepts.
    EVENTS = job_events.EVENTS

    def __init__(self, owning_thread_id: int | None) -> None:
        super().__init__()
        self._owner = owning_thread_id
        self._jobid_ready = threading.Condition()
        self._jobid: Any = None
        self._jobid_is_set = False
        self._jobid_error: BaseException | None = None
        self._jobid_callbacks: list[Callable[[Self], object]] = []
        # Reentrant: a callback may add another one.
        self._event_lock = threading.RLock()
        self._events: defaultdict[str, list[EventRecord]] = defaultdict(list)
        self._event_callbacks: defaultdict[str, list[Callable[[Self, Any], object]]]
        self._event_callbacks = defaultdict(list)

    def jobid(self, timeout: float | None = None) -> int:
        """Return the job's id; wait for it at most `timeout` seconds (`None`: without limit).

        Raises:
            concurrent.futures.TimeoutError: there was no id in time.
            concurrent.futures.CancelledError: the future was cancelled before it had an id.
            RuntimeError: the job could not be submitted.
        """
        with self._jobid_ready:
            if not self._jobid_ready.wait_for(lambda: self._jobid_is_set, timeout):
                raise concurrent.futures.TimeoutError
        if self._jobid_error is not None:
            raise self._jobid_error
        jobid: int = self._jobid
        return jobid

    def add_jobid_callback(self, callback: Callable[[Self], object]) -> Self:
        """Call `callback` with this future once `jobid` would not block; at once if so already."""
        with self._jobid_ready:
            # A job that could not be submitted never gets an id; later callbacks are never called.
            if self._jobid is None:
                self._jobid_callbacks.append(callback)
                return self
        self._call(callback)
        return self

    def add_event_callback(self, event: str, callback: Callable[[Self, Any], object]) -> Self:
        """Call `callback` with this future and each `event`: past events now, others as they come.

        Raises:
            ValueError: `event` is unknown.
        """
        if event not in self.EVENTS:
            raise ValueError(event)
        with self._event_lock:
            self._event_callbacks[event].append(callback)
            for past in list(self._events[event]):
                self._call(callback, past)
        return self

    def add_done_callback(self, fn: Callable[[Self], object]) -> Self:  # type: ignore[override]  # returns self
        """Call `fn` with this future when it is done; at once if it is already. Return self."""
        super().add_done_callback(fn)  # type: ignore[arg-type]  # Self is what it is called with
        return self

    def result(self, timeout: float | None = None) -> int:
        """Return the job's result; wait at most `timeout` seconds.

        Raises:
            RuntimeError: called inside a callback, where waiting would never end.
            JobException: the job had a fatal exception.
        """
        self._refuse_to_deadlock()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception of the job that `result` would raise, or `None`; waits like it."""
        self._refuse_to_deadlock()
        return super().exception(timeout)

    def cancel(self) -> bool:
        """Cancel the future if its job was not submitted yet; return whether it is cancelled."""
        if self.cancelled():
            return True
        cancelled = super().cancel()
        if cancelled:
            self._settle_jobid(concurrent.futures.CancelledError())
        return cancelled

    def set_exception(self, exception: BaseException | None) -> None:
        """Complete the future; without a job id, `jobid` fails too. For executors and tests."""
        self._settle_jobid(RuntimeError(f"job could not be submitted due to {exception!r}"))
        super().set_exception(exception)

    def _settle_jobid(self, error: BaseException) -> None:
        with self._jobid_ready:
            if self._jobid_is_set:
                return
        self._set_jobid(None, error)

    def _set_jobid(self, jobid: Any, exc: BaseException | None = None) -> None:
        """Set the job's id, or the reason why there is none. For executors and tests."""
        with self._jobid_ready:
            if self._jobid_is_set:
                raise RuntimeError("invalid state: the job id is already set")
            self._jobid, self._jobid_error, self._jobid_is_set = jobid, exc, True
            callbacks = list(self._jobid_callbacks)
            self._jobid_ready.notify_all()
        for callback in callbacks:
            self._call(callback)

    def _set_event(self, event: EventRecord) -> None:
        """Pass an event to the callbacks, and keep it for later ones. For executors and tests."""
        if event.name not in self.EVENTS:
            raise ValueError(event.name)
        with self._event_lock:
            self._events[event.name].append(event)
            # A callback that is added meanwhile, by another callback, has got the event already.
            for callback in list(self._event_callbacks[event.name]):
                self._call(callback, event)

    def _refuse_to_deadlock(self) -> None:
        if not self.done() and threading.get_ident() == self._owner:
            raise RuntimeError("Cannot wait for future from inside callback")

    def _call(self, callback: Callable[..., object], *args: Any) -> None:
        try:
            callback(self, *args)
        except Exception:
            log.exception("exception calling callback for %r", self)
