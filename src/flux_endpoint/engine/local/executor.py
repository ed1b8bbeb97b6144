"""`LocalExecutor`: `flux.job.executor.FluxExecutor`'s interface over processes of this machine."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from flux_endpoint.engine.local.event_log import EventLogEvent, JobException
from flux_endpoint.engine.local.future import LocalExecutorFuture
from flux_endpoint.engine.local.instance import LocalInstance
from flux_endpoint.engine.local.job import check_urgency
from flux_endpoint.engine.local.jobspec import read_jobspec
from flux_endpoint.engine.local.resources import ResourcePool
from flux_endpoint.protocol import job_events

log = logging.getLogger(__name__)

_FLAG_PRE_SIGNED, _FLAG_DEBUG, _FLAG_WAITABLE, _FLAG_NOVALIDATE = 1, 2, 4, 8


class LocalExecutor:
    """Runs jobs on virtual nodes of this machine, as `FluxExecutor` runs them on a Flux instance.

    `docs/executors.md` lists the differences.

    Args:
        threads: number of threads that complete futures and call their callbacks.
        thread_name_prefix: prefix of these threads' names.
        poll_interval: ignored: nothing here polls.
        handle_args: ignored: there is no Flux handle.
        handle_kwargs: ignored.
        nodes: number of virtual nodes.
        cores_per_node: cores of each; by default this machine's.
        gpus_per_node: GPUs of each. All virtual nodes are this machine, so the GPU ids of two
            nodes overlap.

    Raises:
        ValueError: a number is out of range.
    """

    _counter = itertools.count()
    #: Event names that futures accept callbacks for.
    EVENTS = job_events.EVENTS

    def __init__(
        self,
        threads: int = 1,
        thread_name_prefix: str = "",
        poll_interval: float = 0.1,
        handle_args: Sequence[Any] = (),
        handle_kwargs: Mapping[str, Any] | None = None,
        *,
        nodes: int = 1,
        cores_per_node: int | None = None,
        gpus_per_node: int = 0,
    ) -> None:
        del poll_interval, handle_args, handle_kwargs
        if threads < 1:
            raise ValueError("the number of threads must be > 0")
        cores = (os.cpu_count() or 1) if cores_per_node is None else cores_per_node
        for name, value, least in (
            ("nodes", nodes, 1),
            ("cores_per_node", cores, 1),
            ("gpus_per_node", gpus_per_node, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        self._broken_event = threading.Event()
        prefix = thread_name_prefix or f"{type(self).__name__}-{next(self._counter)}"
        self._shared = shared = _Shared(self._broken_event)
        shared.instance = LocalInstance(
            ResourcePool(nodes, cores, gpus_per_node),
            name=f"{prefix}-instance",
            on_crash=shared.crash,
        )
        shared.threads = [_FutureThread(shared, f"{prefix}-{i}") for i in range(threads)]
        for thread in shared.threads:
            thread.start()
        self._next_thread = itertools.cycle(shared.threads)
        # Also at the interpreter's exit: futures are completed then, as with other executors.
        self._finalizer = weakref.finalize(self, shared.shutdown, wait=True)

    def submit(self, *args: Any, **kwargs: Any) -> LocalExecutorFuture:
        """Submit a job; takes the arguments of `flux.job.submit` after the handle.

        Args:
            *args: `jobspec` (an object with a method `dumps`, or a version-1 jobspec as JSON or
            YAML),
                `urgency` (0, held, to 31, first of all; 16), `waitable`, `debug`, `pre_signed`.
            **kwargs: the same by name.

        Returns:
            Its future. An invalid argument sets an exception on the future, an OSError in most
            cases.

        Raises:
            RuntimeError: the executor was shut down, or is broken.
        """
        return self._enqueue(lambda future: _Submission(future, args, kwargs))

    def attach(self, jobid: int) -> LocalExecutorFuture:
        """Return a future that follows a job of this executor; it gets all events from the start.

        Raises:
            RuntimeError: the executor was shut down, or is broken.
        """

        def package(future: LocalExecutorFuture) -> _Attachment:
            future._set_jobid(jobid)
            return _Attachment(future, jobid)

        return self._enqueue(package)

    def cancel_job(self, jobid: int, note: str = "") -> None:
        """Cancel a pending or running job, as `flux.job.cancel`.

        Raises:
            FileNotFoundError: there is no such job, or it has ended.
            RuntimeError: the executor was shut down.
        """
        self._instance.cancel(_jobid_number(jobid), note)

    def kill_job(self, jobid: int, signum: int = 15) -> None:
        """Send a signal to all tasks of a running job, as `flux.job.kill`.

        Raises:
            OSError: EINVAL: there is no such job or signal, or the job is not running.
            RuntimeError: the executor was shut down.
        """
        self._instance.kill(_jobid_number(jobid), signum)

    def set_urgency(self, jobid: int, urgency: int) -> None:
        """Set the urgency of a pending job, as `flux job urgency`.

        Raises:
            FileNotFoundError: there is no such job.
            OSError: EINVAL: it is not pending, or there is no such urgency.
            RuntimeError: the executor was shut down.
        """
        self._instance.set_urgency(_jobid_number(jobid), urgency)

    def exec_events(self, jobid: int) -> list[EventLogEvent]:
        """Return the job's execution eventlog so far: Flux's `guest.exec.eventlog`.

        Its `shell.task-exit` events distinguish a killed task from one that exited: `signaled` is
        the signal's number, or 0.

        Raises:
            FileNotFoundError: there is no such job.
            RuntimeError: the executor was shut down.
        """
        return self._instance.exec_events(_jobid_number(jobid))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more jobs; may be called more than once.

        Args:
            wait: return only when all futures are done and all files and processes are cleaned up.
            cancel_futures: cancel the futures whose jobs were not submitted yet.
        """
        self._shared.shutdown(wait=wait, cancel_futures=cancel_futures)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True)

    @property
    def _instance(self) -> LocalInstance:
        assert self._shared.instance is not None
        return self._shared.instance

    def _enqueue(
        self, package: Callable[[LocalExecutorFuture], _Submission | _Attachment]
    ) -> LocalExecutorFuture:
        if self._broken_event.is_set():
            raise RuntimeError("Executor is broken, new futures cannot be scheduled")
        with self._shared.lock:
            if self._shared.is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            thread = next(self._next_thread)
            future = LocalExecutorFuture(thread.ident)
            thread.packages.append(package(future))
            thread.inbox.put(thread.take_package)
        return future


@dataclass(frozen=True, slots=True)
class _Submission:
    future: LocalExecutorFuture
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Attachment:
    future: LocalExecutorFuture
    jobid: Any


@dataclass
class _Shared:
    """State that the executor's threads share; they must not keep the executor itself alive."""

    broken_event: threading.Event
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_shut_down: bool = False
    instance: LocalInstance | None = None
    threads: list[_FutureThread] = field(default_factory=list)
    running: int = 0

    def shutdown(self, *, wait: bool, cancel_futures: bool = False) -> None:
        with self.lock:
            first, self.is_shut_down = not self.is_shut_down, True
        for thread in self.threads:
            if cancel_futures:
                thread.cancel_packages()
            if first:
                thread.inbox.put(thread.begin_shutdown)
        if wait:
            for thread in self.threads:
                if thread is not threading.current_thread():
                    thread.join()
            if self.instance is not None and threading.current_thread() not in self.threads:
                self.instance.close()

    def crash(self, reason: Exception) -> None:
        """Fail all futures, because the instance has crashed."""
        self.broken_event.set()
        for thread in self.threads:
            thread.inbox.put(partial(thread.fail_all, reason))

    def thread_ended(self) -> None:
        with self.lock:
            self.running -= 1
            last = not self.running
        if last and self.instance is not None:
            self.instance.close()


class _FutureThread(threading.Thread):
    """Completes futures from the instance's reports on jobs, and calls the callbacks."""

    def __init__(self, shared: _Shared, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._shared = shared
        #: Futures without a job; for each, the inbox has one `take_package`.
        self.packages: collections.deque[_Submission | _Attachment] = collections.deque()
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._open: set[LocalExecutorFuture] = set()
        self._shutting_down = False
        self._crash: Exception | None = None
        shared.running += 1

    def run(self) -> None:
        try:
            while self._open or self.packages or not self._shutting_down:
                try:
                    self.inbox.get()()
                except Exception as exc:
                    log.exception("a thread of the embedded executor failed")
                    self._shared.crash(exc)
        finally:
            self._shared.thread_ended()

    def begin_shutdown(self) -> None:
        self._shutting_down = True

    def cancel_packages(self) -> None:
        """Cancel the futures that are not submitted yet. Called from any thread."""
        while self.packages:
            try:
                future = self.packages.popleft().future
            except IndexError:
                return
            if future.cancel():
                future.set_running_or_notify_cancel()

    def fail_all(self, reason: Exception) -> None:
        self._crash = reason
        for future in self._open:
            if not future.done():
                future.set_exception(reason)
        self._open.clear()

    def take_package(self) -> None:
        try:
            package = self.packages.popleft()
        except IndexError:  # cancelled by `shutdown`
            return
        future = package.future
        if not future.set_running_or_notify_cancel():
            return
        self._open.add(future)
        try:
            if self._crash is not None:
                raise self._crash
            if isinstance(package, _Submission):
                self._submit(future, *package.args, **package.kwargs)
            else:
                self._attach(future, package.jobid)
        except Exception as exc:  # noqa: BLE001 - it is the future's
            self._open.discard(future)
            future.set_exception(exc)

    def _submit(  # noqa: PLR0917 - flux.job.submit's order
        self,
        future: LocalExecutorFuture,
        jobspec: Any,
        urgency: int = 16,
        waitable: bool = False,
        debug: bool = False,
        pre_signed: bool = False,
        novalidate: bool = False,
    ) -> None:
        spec = read_jobspec(jobspec, pre_signed=pre_signed)
        if not isinstance(urgency, int):
            raise TypeError(f"urgency must be an integer, not {type(urgency).__name__}")
        check_urgency(urgency)
        flags = (
            (_FLAG_PRE_SIGNED if pre_signed else 0)
            | (_FLAG_DEBUG if debug else 0)
            | (_FLAG_WAITABLE if waitable else 0)
            | (_FLAG_NOVALIDATE if novalidate else 0)
        )
        self._instance.submit(
            spec,
            urgency,
            flags,
            lambda answer: self.inbox.put(partial(self._answer, future, answer)),
            self._watcher(future),
        )

    def _attach(self, future: LocalExecutorFuture, jobid: Any) -> None:
        unknown = partial(self._refuse, future, ValueError("job ID does not match any job"))
        self._instance.attach(
            _jobid_number(jobid), self._watcher(future), lambda: self.inbox.put(unknown)
        )

    def _answer(self, future: LocalExecutorFuture, answer: int | OSError) -> None:
        if isinstance(answer, OSError):
            self._refuse(future, answer)
        else:
            future._set_jobid(answer)

    def _refuse(self, future: LocalExecutorFuture, error: Exception) -> None:
        self._open.discard(future)
        future.set_exception(error)

    @property
    def _instance(self) -> LocalInstance:
        assert self._shared.instance is not None
        return self._shared.instance

    def _watcher(self, future: LocalExecutorFuture) -> Callable[[EventLogEvent | None], None]:
        return lambda event: self.inbox.put(partial(self._deliver, future, event))

    def _deliver(self, future: LocalExecutorFuture, event: EventLogEvent | None) -> None:
        if event is None:
            self._open.discard(future)
            return
        deliver(future, event)


def deliver(future: LocalExecutorFuture, event: EventLogEvent) -> None:
    """Report an event of a job to its future, which is done when the job has ended."""
    future._set_event(event)
    if future.done():
        return
    try:
        if event.name == "finish":
            _set_result(future, event.context["status"])
        elif event.name == "exception" and event.context["severity"] == 0:
            future.set_exception(JobException(event))
    except concurrent.futures.InvalidStateError:
        log.debug("%r was completed by someone else", future)


def _set_result(future: LocalExecutorFuture, status: int) -> None:
    if os.WIFEXITED(status):
        future.set_result(os.WEXITSTATUS(status))
    elif os.WIFSIGNALED(status):
        future.set_result(-os.WTERMSIG(status))
    else:
        future.set_exception(ValueError(status))


def _jobid_number(jobid: Any) -> int:
    """Return `jobid` as an unsigned 64-bit number; raises the errors of Flux's bindings."""
    number = int(jobid)
    if number < 0:
        raise OverflowError("can't convert negative number to unsigned")
    if number >= 1 << 64:
        raise OverflowError("int too big to convert")
    return number
