"""Submits jobs to a Flux instance, and follows them by the journal of its job manager.

`flux.job.FluxExecutor` looks for new submissions on a timer, and watches the eventlog of each job,
which gets an event when Flux has committed it, 10 ms later. Here a submission wakes the thread, and
one stream has the events of all jobs as they happen. Only the owner of an instance gets this
stream; for others, and for jobs that somebody else submitted, FluxExecutor does the work.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.flux_futures import end_orphans, then
from flux_endpoint.engine.local.future import LocalExecutorFuture
from flux_endpoint.protocol.job_events import EVENTS, LAST_EVENT

log = logging.getLogger(__name__)

#: The service that streams all jobs' events.
JOURNAL = "job-manager.events-journal"
#: Timeout (s) for the beginning of the stream; without it jobs are followed by FluxExecutor.
_READY_TIMEOUT = 10.0
#: The most jobs whose events are kept while one of them may be a job that has no id here yet.
MOST_UNKNOWN = 4096
#: Seconds between FluxExecutor's checks of its submission queue; its default is 0.1.
_POLL_INTERVAL = 0.01


@dataclass(frozen=True)
class _Submission:
    future: LocalExecutorFuture
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class JournalExecutor:
    """Has the interface of `flux.job.FluxExecutor`, whose job it takes over where it can.

    If the stream of events breaks off, the futures of the jobs that it followed end with a
    `ConnectionAbortedError`: such a job can be attached.

    Args:
        flux: Flux's bindings.
        uri: the instance's; `None`: the default instance.

    Raises:
        OSError: there is no instance.
    """

    def __init__(self, flux: ModuleType, uri: str | None) -> None:
        self._flux = flux
        self._uri = uri
        self._lock = threading.Lock()
        self._other: Any = None
        self._follower = _Follower(flux, flux.Flux(uri))
        # The thread does not refer to this executor: it ends when the executor is collected.
        self._finalizer = weakref.finalize(self, self._follower.close)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """See `FluxExecutor`."""
        if self._follower.is_live():
            return self._follower.submit(args, kwargs)
        return self._flux_executor().submit(*args, **kwargs)

    def attach(self, jobid: int) -> Any:
        """See `FluxExecutor`."""
        return self._flux_executor().attach(jobid)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `FluxExecutor`."""
        self._follower.close(cancel_futures=cancel_futures)
        with self._lock:
            other = self._other
        if other is not None:
            other.shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            self._follower.join()

    def _flux_executor(self) -> Any:
        """Return the FluxExecutor; started only when it is needed, since it polls.

        Raises:
            RuntimeError: this executor is shut down, or there is no instance any more.
        """
        self._follower.refuse_if_over()
        with self._lock:
            if self._other is None:
                try:
                    self._other = self._flux.job.FluxExecutor(
                        poll_interval=_POLL_INTERVAL,
                        thread_name_prefix="watched-jobs",
                        handle_args=(self._uri,),
                    )
                except OSError as error:
                    raise RuntimeError(f"Executor is broken: {error}") from error
            return self._other


class _Follower:
    """The thread that submits jobs and gets their events. It owns the connection.

    Args:
        flux: Flux's bindings.
        handle: a connection for this thread only.
    """

    def __init__(self, flux: ModuleType, handle: Any) -> None:
        self._flux = flux
        self._handle = handle
        self._lock = threading.Lock()
        self._queue: deque[_Submission] = deque()
        self._is_closed = False
        self._wake_fd: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        #: Set when the stream of events has begun, or there is none.
        self._ready = threading.Event()
        self._is_live = False
        #: Why the thread has ended.
        self._broken = ""
        # Of the thread only:
        self._unanswered: set[LocalExecutorFuture] = set()
        self._jobs: dict[int, LocalExecutorFuture] = {}
        #: Events of jobs that may be ours: an event may arrive before the answer with the job's id.
        self._unknown: OrderedDict[int, list[Any]] = OrderedDict()
        self._has_dropped = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def is_live(self) -> bool:
        """Return whether the stream of events has begun and goes on; wait for its beginning."""
        if not self._ready.wait(_READY_TIMEOUT):
            log.warning("Flux does not say when it streams the events of jobs; it is not awaited")
            self._ready.set()  # else each job would wait so long
        return self._is_live

    def submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalExecutorFuture:
        """Submit a job with the arguments of `flux.job.submit_async`; return its future.

        Raises:
            RuntimeError: this is closed, or there is no instance any more.
        """
        future = LocalExecutorFuture(self._thread.ident)
        with self._lock:
            wake_fd = self._open_wake_fd()
            self._queue.append(_Submission(future, args, kwargs))
            os.eventfd_write(wake_fd, 1)
        return future

    def refuse_if_over(self) -> None:
        """Raise the error of `submit` if this is closed, or there is no instance any more."""
        with self._lock:
            self._open_wake_fd()

    def _open_wake_fd(self) -> int:
        if self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._wake_fd is None:
            raise RuntimeError(f"Executor is broken: {self._broken}")
        return self._wake_fd

    def close(self, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; the thread ends after its last job.

        Args:
            cancel_futures: whether to cancel the futures of jobs that are not submitted yet.
        """
        with self._lock:
            self._is_closed = True
            cancelled = list(self._queue) if cancel_futures else []
            if self._wake_fd is not None:
                os.eventfd_write(self._wake_fd, 1)
        for submission in cancelled:
            submission.future.cancel()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()
        end_orphans()

    # On the thread

    def _run(self) -> None:
        handle, constants = self._handle, self._flux.constants
        assert self._wake_fd is not None
        wake = handle.fd_watcher_create(self._wake_fd, self._woken, constants.FLUX_POLLIN)
        # Wakes the reactor when the connection closes, even if the request below fails.
        nothing = handle.msg_watcher_create(
            lambda *_: None, constants.FLUX_MSGTYPE_EVENT, "flux-endpoint.nothing"
        )
        reason = "its broker has closed the connection"
        try:
            with wake, nothing:
                wanted = {"full": False, "allow": dict.fromkeys(EVENTS, 1)}
                streaming = constants.FLUX_RPC_STREAMING
                then(handle.rpc(JOURNAL, wanted, flags=streaming), self._on_entry)
                handle.reactor_run()
        except OSError as error:
            reason = error.strerror or str(error)
        finally:
            self._end(reason)

    def _end(self, reason: str) -> None:
        """End the futures that are still open: there is no instance any more, or nobody waits."""
        with self._lock:
            assert self._wake_fd is not None
            os.close(self._wake_fd)
            self._wake_fd, self._broken = None, reason
            queued = [each.future for each in self._queue if not each.future.cancelled()]
            self._queue.clear()
        self._is_live = False
        self._ready.set()
        left, self._unanswered = [*queued, *self._unanswered, *self._jobs.values()], set()
        self._jobs.clear()
        for future in left:
            future.set_exception(ConnectionResetError(errno.ECONNRESET, reason))

    def _woken(self, *_: Any) -> None:
        with self._lock:
            assert self._wake_fd is not None
            os.eventfd_read(self._wake_fd)
            submissions = list(self._queue)
            self._queue.clear()
        for submission in submissions:
            if submission.future.set_running_or_notify_cancel():
                self._submit(submission)
        self._end_if_done()

    def _submit(self, submission: _Submission) -> None:
        future = submission.future
        try:
            answer = self._flux.job.submit_async(
                self._handle, *submission.args, **submission.kwargs
            )
        except (OSError, TypeError, ValueError) as error:
            future.set_exception(error)
            return
        self._unanswered.add(future)
        then(answer, self._answered, future)

    def _answered(self, answer: Any, future: LocalExecutorFuture) -> None:
        self._unanswered.discard(future)
        try:
            jobid = int(self._flux.job.submit_get_id(answer))
        except OSError as error:
            future.set_exception(error)
        else:
            future._set_jobid(jobid)
            events = self._unknown.pop(jobid, [])
            self._jobs[jobid] = future
            if not self._is_live or (self._has_dropped and not events):
                self._lose(jobid)
            for event in events:
                self._tell(jobid, event)
        if not self._unanswered:
            self._unknown.clear()
            self._has_dropped = False
        self._end_if_done()

    def _on_entry(self, journal: Any) -> None:
        try:
            entry = journal.get()
        except OSError as error:  # not the owner, or the job manager is being reloaded
            logs.event(log, logging.INFO, "Flux does not stream the events of jobs", reason=error)
            self._is_live = False
            self._ready.set()
            for jobid in list(self._jobs):
                self._lose(jobid)
            self._end_if_done()
            return
        journal.reset()
        if not entry["events"]:  # the end of the backlog; this entry has no job id
            self._is_live = True
            self._ready.set()
        elif self._is_live:
            self._take(entry["id"], entry["events"])
            self._end_if_done()

    def _take(self, jobid: int, events: list[Any]) -> None:
        if jobid in self._jobs:
            for event in events:
                self._tell(jobid, event)
        elif jobid in self._unknown:
            self._unknown[jobid].extend(events)
        elif self._unanswered and events[0]["name"] == "submit":
            self._unknown[jobid] = list(events)
            if len(self._unknown) > MOST_UNKNOWN:
                self._unknown.popitem(last=False)
                self._has_dropped = True

    def _tell(self, jobid: int, entry: Any) -> None:
        """Pass an event to a job's future; end the future with the job."""
        future = self._jobs.get(jobid)
        if future is None:
            return
        job = self._flux.job.event
        event = job.EventLogEvent(entry)
        future._set_event(event)
        if not future.done():
            if event.name == "finish":
                _finish(future, int(event.context["status"]))
            elif event.name == "exception" and event.context["severity"] == 0:
                future.set_exception(job.JobException(event))
        if event.name == LAST_EVENT:
            del self._jobs[jobid]

    def _lose(self, jobid: int) -> None:
        """Give up a job: its events are not complete any more."""
        text = "the stream of jobs' events broke off"
        self._jobs.pop(jobid).set_exception(ConnectionAbortedError(errno.ECONNABORTED, text))

    def _end_if_done(self) -> None:
        if self._is_closed and not (self._queue or self._unanswered or self._jobs):
            self._handle.reactor_stop()


def _finish(future: LocalExecutorFuture, status: int) -> None:
    """Set the result of a job by its wait status, as FluxExecutor does."""
    if os.WIFEXITED(status):
        future.set_result(os.WEXITSTATUS(status))
    elif os.WIFSIGNALED(status):
        future.set_result(-os.WTERMSIG(status))
    else:
        future.set_exception(ValueError(status))
