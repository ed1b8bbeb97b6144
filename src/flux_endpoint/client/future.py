"""The future of one task."""

from __future__ import annotations

import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.checks import checked_signal
from flux_endpoint.client.job import JobEvent, JobRecord
from flux_endpoint.client.threads import on_client_thread
from flux_endpoint.errors import FluxEndpointError, TaskCancelled
from flux_endpoint.protocol.job_events import EVENTS
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)

# One for all futures, told once a batch. A future's own condition won't do: `result` takes every
# notification that is not the end for a timeout.
_submitted = threading.Condition()
# Also one for all: taken once for each future whose job somebody asks for.
_recording = threading.Lock()


_alive: weakref.WeakSet[ComputeFuture] = weakref.WeakSet()


def _renew_locks() -> None:
    global _submitted, _recording
    _submitted, _recording = threading.Condition(), threading.Lock()
    for future in _alive:
        future._condition = threading.Condition()
        if future._job is not None:
            future._job.renew_lock()


# A thread that a forked child does not have may hold any of them in its parent.
os.register_at_fork(after_in_child=_renew_locks)


def _tell_waiters(_: object = None) -> None:
    with _submitted:
        _submitted.notify_all()


def _no_task_no_job(future: ComputeFuture) -> None:
    if future.task_id is None and future._job is not None:
        future._job.fail(why_no_job(future))


def why_no_job(future: ComputeFuture) -> BaseException:
    """Return why a future that is done has no job."""
    if future.cancelled():
        return CancelledError()
    error = future.exception()
    task = f"task {future.task_id}"
    if future.task_id is None:
        text = f"the task has no job, it was never submitted: {error}"
    elif error is None:
        text = (
            f"{task} ran without a job of its own: on a resident worker of its endpoint, or on an "
            "endpoint that tells nothing of its jobs"
        )
    elif isinstance(error, TaskCancelled):
        text = f"{task} was ended before it had a job: {error}"
    elif future._error_code == ErrorCode.ENGINE_REFUSED:
        text = f"{task} has no job, its endpoint refused it: {str(error).strip()}"
    else:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        text = f"{task} failed without a job of its own: {lines[-1].strip()}"
    reason = RuntimeError(text)
    reason.__cause__ = error
    return reason


class JobFollower(Protocol):
    """What a future asks for its task's job."""

    api: ServiceApi

    def follow(self, future: ComputeFuture, job: JobRecord) -> None:
        """Have `job` filled with the events of `future`'s task, whose id is known."""


class ComputeFuture(Future[Any]):
    """A `concurrent.futures.Future` that knows its task.

    It can be cancelled until its task is sent to the service; from then on it is running, and
    `kill` ends it. What `flux.job.FluxExecutorFuture` tells of its job, this does too, with the
    events coming from the endpoint for as long as there are some, also after the future is done.

    Callbacks are called in the order in which they were added, by any thread. One that raises is
    logged and ignored. Inside of one, waiting for a future raises `RuntimeError`: it would block
    the thread that it waits for.

    Attributes:
        EVENTS: names of the events that `add_event_callback` takes.
        task_id: the task's id, `None` until the service has accepted the task.
        task_group_id: the group whose queue the result comes from.
        endpoint_id: where the task was sent, `None` if it was reloaded.
        function_id: what the task runs, `None` until it is registered, or if it was reloaded.
    """

    EVENTS: ClassVar[frozenset[str]] = EVENTS

    def __init__(
        self,
        task_id: str | None = None,
        *,
        task_group_id: str | None = None,
        endpoint_id: str | None = None,
    ) -> None:
        super().__init__()
        self.task_id = task_id
        self.task_group_id = task_group_id
        self.endpoint_id = endpoint_id
        self.function_id: str | None = None
        self._load: Callable[[str], Any] | None = None
        self._events: JobFollower | None = None
        self._job: JobRecord | None = None
        self._jobid: int | None = None
        self._wants_events = False
        self._error_code: str | None = None
        self._pid = os.getpid()
        _alive.add(self)

    def add_done_callback(self, fn: Callable[[Self], object]) -> Self:  # type: ignore[override]  # returns self
        """Call `fn` with this future when it is done, at once if it is; return this future."""
        super().add_done_callback(fn)  # type: ignore[arg-type]  # Self is what it is called with
        return self

    def result(self, timeout: float | None = None) -> Any:
        """Return what the task returned.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TaskError: the task ended without a value.
            concurrent.futures.CancelledError: the future was cancelled.
            concurrent.futures.TimeoutError: the time is over.
            RuntimeError: it would wait inside a callback.
        """
        self._refuse_to_deadlock()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise of the task's, or `None`; waits as `result`."""
        self._refuse_to_deadlock()
        return super().exception(timeout)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait in asyncio for what `result` returns or raises; the event loop goes on.

        Cancelling the wait cancels a task that was not sent yet; another goes on.
        """
        self._refuse_to_deadlock()
        import asyncio  # noqa: PLC0415 - whoever awaits has it already

        return asyncio.wrap_future(self).__await__()

    def kill(self, signum: int = signal.SIGTERM) -> bool:
        """End the task, be it queued, waiting or running, with all its processes.

        The future then raises `TaskCancelled`; a task that was not sent yet is just cancelled.

        Args:
            signum: any signal but `SIGTERM` and `SIGKILL` is only sent to the processes of a
                running task, which may go on.

        Returns:
            Whether the task was told; `False` if there was none: it has ended already, or has not
            been sent yet and gets a signal that would not end it.

        Raises:
            ServiceError: the service refuses; `KILL_NOT_SUPPORTED` is for endpoints that can't do
                that. The future is as before.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: no Executor made this future, or it would wait inside a callback.
            ValueError: `signum` is no signal.
        """
        number = checked_signal(signum)
        ends = number in (signal.SIGTERM, signal.SIGKILL)
        if self.done():
            return False
        if ends and self.cancel():
            return True
        if self.task_id is None and not self.running():
            return False
        if self.task_id is None and on_client_thread():
            raise RuntimeError("Cannot wait for a task's id from inside a callback")
        task_id = self.wait_submitted()
        if task_id is None:  # its submission failed
            return False
        answer = self._service().api.kill(task_id, None if ends else number)
        return bool(answer.get("delivered"))

    # The job.

    def jobid(self, timeout: float | None = None) -> int:
        """Return the id of the Flux job that the task became.

        Args:
            timeout: seconds to wait at most.

        Raises:
            concurrent.futures.TimeoutError: it was not known in time.
            concurrent.futures.CancelledError: the future was cancelled.
            RuntimeError: the task has ended without a job, says why; or it would wait inside a
                callback.
        """
        job = self._job_record()
        return (job if job.has_jobid else self._followed_job()).jobid(timeout)

    def add_jobid_callback(self, callback: Callable[[Self], object]) -> Self:
        """Call `callback` with this future once `jobid` does not wait; return this future."""
        self._followed_job().add_jobid_callback(callback)
        return self

    def add_event_callback(self, event: str, callback: Callable[[Self, JobEvent], object]) -> Self:
        """Call `callback` with this future and each event of that name, past ones too.

        Args:
            event: one of `EVENTS`.
            callback: its second argument has `name`, `timestamp` and `context`.

        Returns:
            This future.

        Raises:
            ValueError: there are no events of that name.
        """
        if event not in self.EVENTS:
            raise ValueError(f"no event is called {event!r}, they are {', '.join(sorted(EVENTS))}")
        self._followed_job().add_event_callback(event, callback)
        return self

    def _job_record(self) -> JobRecord:
        with _recording:
            job, known = self._job or JobRecord(self), self._job is not None
            self._job, jobid = job, self._jobid
        if jobid is not None:
            job.set_jobid(jobid)
        if not known:
            self.add_done_callback(_no_task_no_job)
        return job

    def _tell_jobid(self, jobid: int | None) -> None:
        """Take the job's id from the task's end, which may come before the job's events."""
        if jobid is None:
            return
        with _recording:
            self._jobid, job = jobid, self._job
        if job is not None:
            job.set_jobid(jobid)

    def _followed_job(self) -> JobRecord:
        job = self._job_record()
        if not job.is_complete:
            service = self._service()
            self._wants_events = True
            if self.task_id is not None:  # else `_accepted` sees that they are wanted
                service.follow(self, job)
        return job

    def _service(self) -> JobFollower:
        if self._events is None:
            raise RuntimeError("no Executor made this future: nobody knows of its task")
        return self._events

    def _refuse_to_deadlock(self) -> None:
        if self.done():
            return
        if on_client_thread():
            raise RuntimeError("Cannot wait for future from inside callback")
        self._refuse_in_child()

    def _refuse_in_child(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"this future is of process {self._pid}, of which this process is a fork: its "
                "result arrives there. Wait there, or call reload_tasks() of an Executor made here"
            )

    def wait_submitted(self, timeout: float | None = None) -> str | None:
        """Wait until the service has accepted the task.

        Args:
            timeout: seconds to wait at most.

        Returns:
            The task's id; `None` if the time is over or the future has ended without one.

        Raises:
            RuntimeError: this process is a fork of that of the future, where its id arrives.
        """
        if self.task_id is None and not self.done():
            self._refuse_in_child()
            self.add_done_callback(_tell_waiters)
            with _submitted:
                _submitted.wait_for(lambda: self.task_id is not None or self.done(), timeout)
        return self.task_id

    @staticmethod
    def _accepted(accepted: Iterable[Accepted]) -> None:
        """Tell each future its task's id."""
        for each in accepted:
            each.tell()
            if each.future._wants_events:
                each.future._followed_job()
        _tell_waiters()

    def _begin(self) -> bool:
        """Make the future a running one; return `False` if it was cancelled before.

        Whoever cancels it tells its waiters, so nobody else may: it is an error to do so twice.
        """
        with self._condition:
            return not self.cancelled() and self.set_running_or_notify_cancel()

    def _try_result(self, value: Any) -> None:
        """Resolve with `value`, unless the future has ended already."""
        self._settle(self.set_result, value)

    def _try_exception(self, error: BaseException) -> None:
        """Resolve with `error`, unless the future has ended already."""
        if isinstance(error, FluxEndpointError):
            # Its text says all. Where our thread met it would only be a long way to that.
            error.with_traceback(None)
        self._settle(self.set_exception, error)

    def _settle(self, end: Callable[[Any], None], value: Any) -> None:
        try:
            end(value)
        except InvalidStateError:
            return
        except BaseException:  # of a callback; our thread has other futures to resolve
            log.exception("a callback of task %s raised", self.task_id)


class Accepted(NamedTuple):
    """A task that the service has accepted; `function_id` is `None` for one that follows a job."""

    future: ComputeFuture
    task_id: str
    function_id: str | None = None

    def tell(self) -> None:
        """Give the future its ids; whoever sees the task's sees the function's, too."""
        self.future.function_id = self.function_id
        self.future.task_id = self.task_id
