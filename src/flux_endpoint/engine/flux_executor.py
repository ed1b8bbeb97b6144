"""`flux.job.FluxExecutor`, with futures that survive failures in following their jobs.

FluxExecutor follows a job by watching its eventlog. On a busy machine a watch can fail (seen:
`FileExistsError` in `event_watch_get`) although the job goes on. Its future then ends with that
error; if the job's end was already known, FluxExecutor's thread dies, with all of its futures.
Here a future with a known job id attaches to the job again, and ends when the job ends.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from flux_endpoint import logs
from flux_endpoint.engine.local.future import LocalExecutorFuture
from flux_endpoint.protocol import job_events
from flux_endpoint.protocol.job_events import EventRecord
from flux_endpoint.protocol.jobid import format_jobid

log = logging.getLogger(__name__)

#: Seconds from a failed watch to each further attempt, as long as none brings an event.
DELAYS = (0.02, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(eq=False)
class _Watch:
    """One watch of a job's events; FluxExecutor may report its failure more than once."""

    broken: bool = False
    #: Number of events it has reported, by name.
    seen: Counter[str] = field(default_factory=Counter)


class FollowedFuture(LocalExecutorFuture):
    """The future of a job, independent of the watches that follow it.

    Args:
        inner: FluxExecutor's future of the first watch.
        attach: returns FluxExecutor's future of another watch.
        is_final: whether an error ends the future; else the job is attached again.
    """

    def __init__(
        self,
        inner: Any,
        attach: Callable[[int], Any],
        is_final: Callable[[BaseException], bool],
    ) -> None:
        super().__init__(None)
        self._inner = inner
        self._attach = attach
        self._is_final = is_final
        self._lock = threading.Lock()
        #: Number of events by name, and number of attempts since the last event.
        self._known: Counter[str] = Counter()
        self._attempts = 0
        self._follow(inner)

    def cancel(self) -> bool:
        """See `LocalExecutorFuture`."""
        self._inner.cancel()  # its end ends this future
        return self.cancelled()

    def running(self) -> bool:
        """Return whether the job is submitted, or about to be."""
        return not self.done() and bool(self._inner.running() or self._inner.done())

    def _refuse_to_deadlock(self) -> None:
        if not self.done() and not self._inner.done():
            with suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
                self._inner.exception(timeout=0)  # raises if called on FluxExecutor's thread

    def _follow(self, inner: Any) -> None:
        watch = _Watch()
        fail = inner.set_exception

        def set_exception(error: BaseException | None) -> None:
            if error is not None:
                error.__traceback__ = None  # refers to Flux's future, which must end on this thread
            if not inner.done():
                fail(error)
            elif error is not None:  # the job's end was known, but its last events are missing
                self._resume(watch, error)

        inner.set_exception = set_exception
        if inner is self._inner:
            try:
                self._identified(inner)
            except concurrent.futures.TimeoutError:
                inner.add_jobid_callback(self._identified)
        for name in self.EVENTS:
            inner.add_event_callback(name, partial(self._happened, watch))
        inner.add_done_callback(partial(self._ended, watch))

    def _identified(self, inner: Any) -> None:
        with suppress(RuntimeError, concurrent.futures.CancelledError):  # the end has the reason
            self._set_jobid(inner.jobid(timeout=0))

    def _happened(self, watch: _Watch, _: Any, event: EventRecord) -> None:
        with self._lock:
            watch.seen[event.name] += 1
            if watch.broken or watch.seen[event.name] <= self._known[event.name]:
                return  # another watch reports them all, from the first
            self._known[event.name] += 1
            self._attempts = 0
        self._set_event(event)

    def _ended(self, watch: _Watch, inner: Any) -> None:
        if self.done():
            return
        if inner.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        error = inner.exception(timeout=0)
        if error is None:
            self.set_result(inner.result(timeout=0))
        elif hasattr(error, "severity") or not self._resume(watch, error):
            self.set_exception(error)

    def _resume(self, watch: _Watch, error: BaseException) -> bool:
        """Schedule another attachment to the job; return whether there will be one."""
        if self._is_final(error):
            return False
        with self._lock:
            jobid, attempt = self._jobid, self._attempts
            if watch.broken or jobid is None or attempt >= len(DELAYS):
                return watch.broken
            watch.broken = True
            self._attempts += 1
        logs.event(
            log,
            logging.WARNING,
            "a job's events broke off; attaching again",
            job=format_jobid(jobid),
            reason=error,
        )
        timer = threading.Timer(DELAYS[attempt], self._attach_again, (jobid, error))
        timer.daemon = True
        timer.start()
        return True

    def _attach_again(self, jobid: int, error: BaseException) -> None:
        try:
            self._follow(self._attach(jobid))
        except RuntimeError as refused:  # the executor is shut down or broken
            logs.event(log, logging.DEBUG, "not attached again", reason=refused)
            if not self.done():
                self.set_exception(error)


class FollowingExecutor:
    """A `FluxExecutor` with the same interface, whose futures end when their jobs end.

    Args:
        executor: the FluxExecutor, for exclusive use.
        is_gone: whether an error says that the whole instance is gone.
    """

    #: Event names that the futures' `add_event_callback` accepts.
    EVENTS = job_events.EVENTS

    def __init__(self, executor: Any, is_gone: Callable[[BaseException], bool]) -> None:
        self._executor = executor
        self._is_final = partial(_is_final, is_gone)
        self._changed = threading.Condition()
        self._closed = False
        self._open: set[FollowedFuture] = set()

    def submit(self, *args: Any, **kwargs: Any) -> FollowedFuture:
        """See `FluxExecutor`."""
        return self._take(lambda: self._executor.submit(*args, **kwargs))

    def attach(self, jobid: int) -> FollowedFuture:
        """See `FluxExecutor`."""
        return self._take(lambda: self._executor.attach(jobid))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `FluxExecutor`."""
        with self._changed:
            self._closed = True
            if wait and not cancel_futures:  # futures must be able to attach again while we wait
                self._changed.wait_for(lambda: not self._open)
        self._executor.shutdown(wait=wait, cancel_futures=cancel_futures)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True)

    def _take(self, start: Callable[[], Any]) -> FollowedFuture:
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            # Futures don't keep the executor alive: its threads end when it is collected.
            attach = partial(_attach, weakref.ref(self._executor))
            future = FollowedFuture(start(), attach, self._is_final)
            self._open.add(future)
        future.add_done_callback(partial(_finished, self._changed, self._open))
        return future


def _attach(executor: weakref.ref[Any], jobid: int) -> Any:
    found = executor()
    if found is None:
        raise RuntimeError("the executor is gone")
    return found.attach(jobid)


def _finished(changed: threading.Condition, pending: set[Any], future: Any) -> None:
    with changed:
        pending.discard(future)
        changed.notify_all()


def _is_final(is_gone: Callable[[BaseException], bool], error: BaseException) -> bool:
    """Return whether attaching again is useless: another user's job, no job, or no Flux."""
    final = (PermissionError, ValueError, TypeError, OverflowError)
    return isinstance(error, final) or is_gone(error)
