"""The future of one task."""

from __future__ import annotations

import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, InvalidStateError
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.checks import checked_signal
from flux_endpoint.client.display import future_table
from flux_endpoint.client.job import JobEvent, JobRecord
from flux_endpoint.client.needs import reference_to
from flux_endpoint.client.output import WithOutput
from flux_endpoint.client.threads import on_client_thread
from flux_endpoint.client.urgency import WithUrgency
from flux_endpoint.errors import FluxEndpointError, TaskCancelled
from flux_endpoint.functions.inputs import task_input
from flux_endpoint.protocol.exceptions import RemoteErrors
from flux_endpoint.protocol.job_events import EVENTS
from flux_endpoint.protocol.jobid import JobID
from flux_endpoint.protocol.states import ErrorCode

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from flux_endpoint.client.backlog import Accepted

    #: Type of a task's result; unknown where it isn't given.
    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")

log = logging.getLogger(__name__)

# One condition for all futures, notified once for each batch. A future's own condition can't be
# used: `Future.result` treats every notification before the end as a timeout.
_submitted = threading.Condition()
# One lock for the `_job` of all futures; it is rarely needed.
_recording = threading.Lock()

_PYTHONS_OWN = RemoteErrors()


_alive: weakref.WeakSet[ComputeFuture] = weakref.WeakSet()


def _renew_locks() -> None:
    global _submitted, _recording
    _submitted, _recording = threading.Condition(), threading.Lock()
    for future in _alive:
        future._condition = threading.Condition()
        if future._job is not None:
            future._job.renew_lock()


# At the fork, a thread of the parent may hold any of these; in the child nobody releases them.
os.register_at_fork(after_in_child=_renew_locks)


def _notify_waiters(_: object = None) -> None:
    with _submitted:
        _submitted.notify_all()


def _fail_job_without_task(future: ComputeFuture) -> None:
    if future.task_id is None and future._job is not None:
        future._job.fail(why_no_job(future))


def why_no_job(future: ComputeFuture) -> BaseException:
    """Return the error that explains why a future that is done has no job."""
    if future.cancelled():
        return CancelledError()
    error = future.exception()
    task = f"task {future.task_id}"
    if future.task_id is None:
        text = f"the task has no job, it was never submitted: {error}"
    elif error is None:
        text = (
            f"{task} ran without a job of its own: on a resident worker of its endpoint, or on an "
            "endpoint that reports no job events"
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
    """Finds the job events of a future's task.

    Attributes:
        api: the service.
    """

    api: ServiceApi

    def follow(self, future: ComputeFuture, job: JobRecord) -> None:
        """Add the events of a task's job to `job`, as they arrive.

        Args:
            future: the task's future; its `task_id` is known.
            job: the record.
        """


class ComputeFuture(WithOutput, WithUrgency[T]):
    """A `concurrent.futures.Future` that knows its task.

    It can be cancelled until its task is sent to the service; from then on it is running, and
    `kill` ends it. Like a `flux.job.FluxExecutorFuture`, it has the id and events of its job. The
    events come from the endpoint, and continue after the future is done.

    Callbacks are called by any thread, in the order in which they were added. An exception in a
    callback is logged and ignored. Waiting for a future inside a callback raises `RuntimeError`: it
    would block the thread that resolves futures.

    Args:
        task_id: the task's id, if known.
        task_group_id: the task's group.
        endpoint_id: the task's endpoint.

    Attributes:
        EVENTS: names of the events that `add_event_callback` accepts.
        task_id: the task's id; `None` until the service has accepted the task.
        task_group_id: the task's group.
        endpoint_id: the endpoint that runs the task; `None` if the task was reloaded.
        function_id: the function that the task runs; `None` until it is registered, or if the task
            was reloaded.

    Example:
        future = executor.submit(pow, 2, 10)
        future.add_done_callback(lambda future: print(future.task_id, future.result()))
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
        self._remote_errors = _PYTHONS_OWN
        self._is_cached = False
        self._events: JobFollower | None = None
        self._job: JobRecord | None = None
        self._jobid: int | None = None
        self._wants_events = False
        self._error_code: str | None = None
        self._pid = os.getpid()
        _alive.add(self)

    def add_done_callback(self, fn: Callable[[Self], object]) -> Self:  # type: ignore[override]  # returns self
        """Call `fn` with this future when it is done, or now if it already is.

        Args:
            fn: the callback.

        Returns:
            This future.
        """
        super().add_done_callback(fn)  # type: ignore[arg-type]  # it is called with Self
        return self

    def result(self, timeout: float | None = None) -> T:
        """Wait for the task and return its result.

        Args:
            timeout: the longest time (s) to wait; `None`: no limit.

        Raises:
            TaskError: the task failed or was ended.
            ServiceError: the service refused the task.
            ServiceUnreachableError: the service could not be reached to submit the task.
            DeserializationError: the result can't be read here.
            concurrent.futures.CancelledError: the future was cancelled.
            concurrent.futures.TimeoutError: the task did not end in time.
            RuntimeError: the call would wait inside a callback, or in a forked child.
        """
        self._refuse_to_deadlock()
        value: T = super().result(timeout)
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the task and return its error, or `None` if it succeeded.

        Args:
            timeout: the longest time (s) to wait; `None`: no limit.

        Raises:
            concurrent.futures.CancelledError: the future was cancelled.
            concurrent.futures.TimeoutError: the task did not end in time.
            RuntimeError: the call would wait inside a callback, or in a forked child.
        """
        self._refuse_to_deadlock()
        return super().exception(timeout)

    @property
    def is_cached(self) -> bool:
        """Whether the result is that of an earlier call, whose task has the id `task_id`."""
        return self._is_cached

    def __repr__(self) -> str:
        """Return its task, its state, and the type of its value or error."""
        state = super().__repr__().partition(" state=")[2]
        return f"<{type(self).__name__} task={self.task_id} state={state}"

    def _repr_html_(self) -> str:
        return future_table(self)

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        """Refer to the task's result: a future among a task's arguments stands for it.

        Raises:
            TypeError: the arguments of a task are not being serialized.
        """
        return task_input, (reference_to(self),)

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in asyncio for the result or error, without blocking the event loop.

        If the wait is cancelled, a task that was not sent yet is cancelled; other tasks continue.
        """
        self._refuse_to_deadlock()
        import asyncio  # noqa: PLC0415 - the caller has loaded it already

        return asyncio.wrap_future(self).__await__()

    def kill(self, signum: int = signal.SIGTERM) -> bool:
        """End the task, queued or running, with all its processes.

        The future then raises `TaskCancelled`. A task that was not sent yet is cancelled instead.

        Args:
            signum: number of the signal. `SIGTERM` and `SIGKILL` end the task; other signals are
                only sent to the processes of a running task, which may continue.

        Returns:
            Whether the task was cancelled or the request reached its endpoint; `False` if the task
            has already ended, or if it was not sent yet and the signal would not end it.

        Raises:
            ServiceError: the service refuses; the code is `KILL_NOT_SUPPORTED` if the endpoint
                can't cancel tasks. The future is unchanged.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: the future does not belong to an Executor, or the call would wait inside
                a callback.
            ValueError: `signum` is not a signal.
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

    def jobid(self, timeout: float | None = None) -> JobID:
        """Wait for the task's Flux job and return the job's id, an integer that prints as `ƒ…`.

        Args:
            timeout: the longest time (s) to wait; `None`: no limit.

        Raises:
            concurrent.futures.TimeoutError: the id was not known in time.
            concurrent.futures.CancelledError: the future was cancelled.
            RuntimeError: the task has ended without a job (the text says why); or the call would
                wait inside a callback.
        """
        job = self._job_record()
        return (job if job.has_jobid else self._followed_job()).jobid(timeout)

    def add_jobid_callback(self, callback: Callable[[Self], object]) -> Self:
        """Call `callback` with this future when the job's id is known, or there will be no job.

        Args:
            callback: the callback; `jobid` does not wait inside of it.

        Returns:
            This future.

        Raises:
            RuntimeError: the future does not belong to an Executor.
        """
        self._followed_job().add_jobid_callback(callback)
        return self

    def add_event_callback(self, event: str, callback: Callable[[Self, JobEvent], object]) -> Self:
        """Call `callback` with this future and each event of one name, including past events.

        Args:
            event: name of the events, one of `EVENTS`.
            callback: the callback; its second argument is a `JobEvent`.

        Returns:
            This future.

        Raises:
            ValueError: there are no events of that name.
            RuntimeError: the future does not belong to an Executor.
        """
        if event not in self.EVENTS:
            known = ", ".join(sorted(EVENTS))
            raise ValueError(f"unknown event {event!r}, expected one of {known}")
        self._followed_job().add_event_callback(event, callback)
        return self

    def _job_record(self) -> JobRecord:
        with _recording:
            job, known = self._job or JobRecord(self), self._job is not None
            self._job, jobid = job, self._jobid
        if jobid is not None:
            job.set_jobid(jobid)
        if not known:
            self.add_done_callback(_fail_job_without_task)
        return job

    def _set_jobid(self, jobid: int | None) -> None:
        """Set the job's id from the task's result, which may arrive before the job's events."""
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
            if self.task_id is not None:  # otherwise `_accepted` does this later
                service.follow(self, job)
        return job

    def _service(self) -> JobFollower:
        if self._events is None:
            raise RuntimeError("this future has no task: it was not created by an Executor")
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
                f"this future belongs to process {self._pid}, of which this process is a fork: its "
                "result arrives there. Wait there, or call reload_tasks() of an Executor that was "
                "created here"
            )

    def wait_submitted(self, timeout: float | None = None) -> str | None:
        """Wait until the service has accepted the task.

        Args:
            timeout: the longest time (s) to wait; `None`: no limit.

        Returns:
            The task's id; `None` if the time is over or the submission failed or was cancelled.

        Raises:
            RuntimeError: this is a forked child; the id arrives in the process that submitted.
        """
        if self.task_id is None and not self.done():
            self._refuse_in_child()
            self.add_done_callback(_notify_waiters)
            with _submitted:
                _submitted.wait_for(lambda: self.task_id is not None or self.done(), timeout)
        return self.task_id

    @staticmethod
    def _accepted(accepted: Iterable[Accepted]) -> None:
        """Set the ids of futures whose tasks the service has accepted."""
        for each in accepted:
            each.set_ids()
            if each.future._wants_events:
                each.future._followed_job()
        _notify_waiters()

    def _begin(self) -> bool:
        """Mark the future as running; return `False` if it was cancelled before.

        The thread that cancels a future notifies its waiters. They must be notified only once, so
        this method must not do it again.
        """
        with self._condition:
            return not self.cancelled() and self.set_running_or_notify_cancel()

    def _try_result(self, value: Any) -> None:
        """Resolve with `value`, unless the future has ended already."""
        self._settle(self.set_result, value)

    def _try_exception(self, error: BaseException) -> None:
        """Resolve with `error`, unless the future has ended already."""
        if isinstance(error, FluxEndpointError):
            # Its text is complete; a traceback of our own thread would only obscure it.
            error.with_traceback(None)
        self._settle(self.set_exception, error)

    def _settle(self, end: Callable[[Any], None], value: Any) -> None:
        try:
            end(value)
        except InvalidStateError:
            return
        except BaseException:  # raised by a callback; this thread has other futures to resolve
            log.exception("a callback of task %s raised", self.task_id)
