"""`flux.job.FluxExecutor`, with futures that outlive what goes wrong in following their jobs.

FluxExecutor follows a job by watching its eventlog. On a busy machine a watch can end with an
error (seen: `FileExistsError` in `event_watch_get`) although the job goes on; its future ends with
the error then, and if the job's end was known before, FluxExecutor's thread does, with all futures.
Here whoever has a job's id attaches to it again, and the future's end is the job's.
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
from flux_endpoint.engine.local.future import Event, LocalExecutorFuture
from flux_endpoint.protocol import job_events
from flux_endpoint.protocol.jobid import format_jobid

log = logging.getLogger(__name__)

#: Seconds from a watch that fails to each of the next attempts, as long as none brings an event.
DELAYS = (0.02, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(eq=False)
class _Watch:
    """One watch of a job's events; FluxExecutor may tell of its failure more than once."""

    broken: bool = False
    #: How many events it told, by name.
    seen: Counter[str] = field(default_factory=Counter)


class FollowedFuture(LocalExecutorFuture):
    """The future of a job, whatever becomes of the watches that follow it.

    Args:
        inner: the future of the first watch, FluxExecutor's.
        attach: returns FluxExecutor's future of a further watch.
        is_final: whether an error is told, not mended.
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
        #: How many events there were, by name, and how many attempts since the last one.
        self._known: Counter[str] = Counter()
        self._attempts = 0
        self._follow(inner)

    def cancel(self) -> bool:
        """See `LocalExecutorFuture`."""
        self._inner.cancel()  # its end is ours
        return self.cancelled()

    def running(self) -> bool:
        """Return whether the job is submitted, or about to be."""
        return not self.done() and bool(self._inner.running() or self._inner.done())

    def _refuse_to_deadlock(self) -> None:
        if not self.done() and not self._inner.done():
            with suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
                self._inner.exception(timeout=0)  # refuses if it is called on its thread

    def _follow(self, inner: Any) -> None:
        watch = _Watch()
        tell = inner.set_exception

        def set_exception(error: BaseException | None) -> None:
            if error is not None:
                error.__traceback__ = None  # it holds Flux's future, which ends on this thread
            if not inner.done():
                tell(error)
            elif error is not None:  # its job's end was known: its last events are missing
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
        with suppress(RuntimeError, concurrent.futures.CancelledError):  # its end says why not
            self._set_jobid(inner.jobid(timeout=0))

    def _happened(self, watch: _Watch, _: Any, event: Event) -> None:
        with self._lock:
            watch.seen[event.name] += 1
            if watch.broken or watch.seen[event.name] <= self._known[event.name]:
                return  # a further watch tells all of them from the first on
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
        """Attach to the job again in a while; return whether that is tried."""
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
            "attaching again: a job's events broke off",
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
        except RuntimeError as refused:  # the executor is shut down, or broken
            logs.event(log, logging.DEBUG, "not attached again", reason=refused)
            if not self.done():
                self.set_exception(error)


class FollowingExecutor:
    """A `FluxExecutor`, and its interface, with futures whose end is their job's.

    Args:
        executor: the FluxExecutor; no one else's.
        is_gone: whether an error says that the whole instance is gone.
    """

    #: Names of the events that futures' `add_event_callback` takes.
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
            if wait and not cancel_futures:  # whoever lost a job must be able to attach again
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
            # Futures don't keep it alive: an executor that is forgotten ends its threads.
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
    """Return whether to attach again is no use: another user's job, no job, no Flux."""
    final = (PermissionError, ValueError, TypeError, OverflowError)
    return isinstance(error, final) or is_gone(error)
