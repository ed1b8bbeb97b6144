"""The embedded instance: queues jobs, allocates resources, runs the jobs and reports events."""

from __future__ import annotations

import errno
import heapq
import logging
import math
import os
import shutil
import signal
import socket
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

from flux_endpoint.engine.local.dependencies import Dependencies
from flux_endpoint.engine.local.event_log import TASK_USAGE, EventLogEvent
from flux_endpoint.engine.local.job import LocalJob, LocalJobState, Watcher
from flux_endpoint.engine.local.jobspec import LocalJobspec, seconds_of
from flux_endpoint.engine.local.launch import Launcher
from flux_endpoint.engine.local.pmi import MAX_RANKS, PmiServer
from flux_endpoint.engine.local.resources import ResourcePool, UnsatisfiableError, summary
from flux_endpoint.engine.local.scratch import ScratchDirectory
from flux_endpoint.owner_thread import OwnerThread, ThreadStoppedError
from flux_endpoint.processes import ProcessKeeper
from flux_endpoint.protocol.jobid import JobIdGenerator, format_jobid
from flux_endpoint.usage import Usage

log = logging.getLogger(__name__)

#: Seconds between the signal that asks a job's tasks to end and SIGKILL.
KILL_TIMEOUT = 5.0
#: Seconds that the other tasks have after one has exited, unless the shell option `exit-timeout`
#: sets another limit.
EXIT_TIMEOUT = 30.0
#: Number of ended jobs that can still be attached to.
MAX_INACTIVE = 2_000
_SHUT_DOWN = "the executor has been shut down"

T = TypeVar("T")


class LocalInstance:
    """Owns all jobs, on one thread; every method may be called from any thread.

    Args:
        pool: the resources.
        name: the thread's name.
        on_crash: called with the reason when the thread can't go on.
        variables: environment variables that the surrounding job gives to each task.
    """

    def __init__(
        self,
        pool: ResourcePool,
        *,
        name: str,
        on_crash: Callable[[Exception], None],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._pool = pool
        self._variables = variables or {}
        self._on_crash = on_crash
        self._ids = JobIdGenerator()
        self._jobs: dict[int, LocalJob] = {}
        self._inactive: OrderedDict[int, LocalJob] = OrderedDict()
        self._pending: list[tuple[int, int]] = []  # heap of (-priority, job id)
        #: Job and index of the node, by group key.
        self._group_jobs: dict[str, tuple[LocalJob, int]] = {}
        self._thread = OwnerThread(
            name, after_turn=self._schedule, at_end=self._close, on_error=self._fail
        )
        # By messages rather than recursion: a chain of dependent jobs may be long.
        self._dependencies = Dependencies(
            self._find,
            self._thread.after,
            on_met=lambda job: self._thread.post(partial(self._ready, job)),
            on_failed=lambda job, why: self._thread.post(
                partial(self._raise_if_pending, job, "dependency", why)
            ),
        )
        self._default_cwd = str(Path.cwd())
        self._scratch = ScratchDirectory()
        self._keeper: ProcessKeeper | None = None
        self._pmi: PmiServer | None = None
        self._thread.start()

    # ---- called from other threads ----------------------------------------------------------

    def submit(
        self,
        spec: LocalJobspec,
        urgency: int,
        flags: int,
        answer: Callable[[int | OSError], None],
        watcher: Watcher,
    ) -> None:
        """Queue a job. `answer` gets its id, or the refusal; then `watcher` gets its events."""
        self._post(partial(self._submit, spec, urgency, flags, answer, watcher))

    def attach(self, jobid: int, watcher: Watcher, on_unknown: Callable[[], None]) -> None:
        """Give `watcher` the job's events, from the first on."""
        self._post(partial(self._attach, jobid, watcher, on_unknown))

    def cancel(self, jobid: int, note: str) -> None:
        """Raise a fatal exception of type `cancel` on a job; returns when it has been raised.

        Raises:
            FileNotFoundError: there is no such job, or it has ended.
        """
        self._call(lambda: self._cancel(jobid, note))

    def kill(self, jobid: int, signum: int) -> None:
        """Send a signal to all tasks of a running job.

        Raises:
            OSError: EINVAL: there is no such job or signal, or the job is not running.
        """
        self._call(lambda: self._signal_job(jobid, signum))

    def set_urgency(self, jobid: int, urgency: int) -> None:
        """Set the urgency of a pending job; see `LocalExecutor`."""
        self._call(lambda: self._set_urgency(jobid, urgency))

    def exec_events(self, jobid: int) -> list[EventLogEvent]:
        """Return the events of the job's execution so far.

        Raises:
            FileNotFoundError: there is no such job.
        """
        return self._call(lambda: list(self._find(jobid).exec_events))

    def close(self) -> None:
        """Kill all jobs, and end the thread."""
        self._thread.stop()
        self._thread.join()

    def _post(self, message: Callable[[], None]) -> None:
        if not self._thread.offer(message):
            raise RuntimeError(_SHUT_DOWN)

    def _call(self, function: Callable[[], T]) -> T:
        try:
            return self._thread.call(function)
        except ThreadStoppedError:
            raise RuntimeError(_SHUT_DOWN) from None

    # ---- the thread -------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        """Handle a crash: the state is unreliable from now on."""
        log.error("the embedded executor failed", exc_info=error)
        self._thread.stop()
        self._on_crash(error)

    def _close(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
        if self._pmi is not None:
            self._pmi.close()
        self._scratch.remove()

    def _find(self, jobid: int) -> LocalJob:
        job = self._jobs.get(jobid) or self._inactive.get(jobid)
        if job is None:
            raise FileNotFoundError(errno.ENOENT, "unknown job id")
        return job

    def _attach(self, jobid: int, watcher: Watcher, on_unknown: Callable[[], None]) -> None:
        try:
            job = self._find(jobid)
        except FileNotFoundError:
            on_unknown()
        else:
            job.watch(watcher)

    # ---- pending ----------------------------------------------------------------------------

    def _submit(
        self,
        spec: LocalJobspec,
        urgency: int,
        flags: int,
        answer: Callable[[int | OSError], None],
        watcher: Watcher,
    ) -> None:
        job = LocalJob(self._ids.next(), spec, urgency)
        try:
            waits = self._dependencies.add(job, self._jobs.values())
        except OSError as exc:
            answer(exc)
            return
        self._jobs[job.id] = job
        answer(job.id)
        job.watch(watcher)
        job.post("submit", userid=os.getuid(), urgency=urgency, flags=flags, version=1)
        if not waits:
            self._ready(job)

    def _ready(self, job: LocalJob) -> None:
        """Queue a job that has no open dependencies."""
        if job.state is not LocalJobState.PENDING:
            return
        assert job.spec is not None
        shape = job.spec.shape
        job.post("depend")
        job.post("priority", priority=job.priority)
        try:
            if isinstance(shape, str):
                raise UnsatisfiableError(f"cannot parse jobspec: {shape}")
            try:
                self._pool.check(shape)
            except UnsatisfiableError as exc:
                raise UnsatisfiableError(f"unsatisfiable request: {exc}") from None
        except UnsatisfiableError as exc:
            self._raise(job, "alloc", str(exc))
            return
        self._enqueue(job)

    def _enqueue(self, job: LocalJob) -> None:
        if job.priority > 0:  # else the job is held (urgency 0)
            heapq.heappush(self._pending, (-job.priority, job.id))

    def _set_urgency(self, jobid: int, urgency: int) -> None:
        job = self._find(jobid)
        job.set_urgency(urgency)
        if job.is_ready:
            self._enqueue(job)

    def _schedule(self) -> float:
        """Start jobs by priority, then id, as long as the first one fits."""
        while self._pending:
            priority, jobid = self._pending[0]
            job = self._jobs.get(jobid)
            # A job whose urgency has changed is there more than once.
            is_current = job is not None and -priority == job.priority
            if job is not None and is_current and job.state is LocalJobState.PENDING:
                assert job.spec is not None
                assert not isinstance(job.spec.shape, str)
                allocation = self._pool.allocate(job.spec.shape)
                if allocation is None:
                    break
                job.allocation = allocation
                self._start(job)
            heapq.heappop(self._pending)
        return math.inf  # every change of that posts a message

    # ---- running ----------------------------------------------------------------------------

    def _start(self, job: LocalJob) -> None:
        assert job.spec is not None
        job.state = LocalJobState.RUNNING
        job.post("alloc", annotations={"sched": {"resource_summary": summary(job.allocation)}})
        job.post_exec("init")
        job.post_exec("starting")
        job.launcher = Launcher(
            job.id,
            job.spec,
            job.allocation,
            directory=self._scratch.path,
            default_cwd=self._default_cwd,
            variables=self._variables,
        )
        with ExitStack() as channels:  # the ranks have copies
            try:
                job.tasks = job.launcher.plan(self._connect(job, job.launcher.size, channels))
            except (OSError, ValueError) as exc:  # ValueError: a null byte in a path
                why = str(exc)
                if isinstance(exc, OSError):  # without a file: there are no more descriptors
                    why = ": ".join(filter(None, (exc.strerror, exc.filename)))
                job.post("start")
                self._raise(job, "exec", f"shell_init: {why}")
                self._finish(job, 1 << 8)
                return
            for index, group in enumerate(job.groups):
                self._group_jobs[group] = (job, index)
                self._spawn(job, index)
        job.post("start")
        self._dependencies.check(job)
        if job.spec.duration > 0:
            self._thread.after(job.spec.duration, partial(self._expire, job))

    def _connect(self, job: LocalJob, size: int, channels: ExitStack) -> list[int]:
        """Return the descriptors by which a job's ranks find one another; a lone task has none."""
        assert job.spec is not None
        served = str(job.spec.shell_options.get("pmi", "simple")).split(",")
        if not 1 < size <= MAX_RANKS or "simple" not in served:
            return []
        self._pmi = self._pmi or PmiServer("job-pmi")
        fail = partial(self._raise_if_running, job, "exec")
        sockets = self._pmi.connect(size, lambda note: self._thread.post(partial(fail, note)))
        return [channels.enter_context(each).fileno() for each in sockets]

    def _spawn(self, job: LocalJob, index: int) -> None:
        key, commands = job.groups[index], [task.command for task in job.tasks[index]]
        if not commands:  # more nodes than tasks
            self._thread.post(partial(self._group_exited, key, 0))
            return
        for attempt in (1, 2):
            try:
                if self._keeper is None:
                    self._keeper = self._new_keeper()
                self._keeper.spawn(key, commands)
            except RuntimeError:  # the helper was killed; its groups are reported as ended
                self._keeper = None
                if attempt == 2:
                    raise
            else:
                return

    def _new_keeper(self) -> ProcessKeeper:
        post = self._thread.post
        keeper = ProcessKeeper(
            lambda key, pids: post(partial(self._group_started, key, pids)),
            lambda key, index, status: post(partial(self._task_exited, key, index, status)),
            lambda key, status: post(partial(self._group_exited, key, status)),
            lambda key, index, error: post(partial(self._task_not_started, key, index, error)),
            on_usage=lambda key, _index, usage: post(partial(self._task_used, key, usage)),
            name="job-processes",
        )
        keeper.start()
        return keeper

    def _group_started(self, key: str, pids: list[int]) -> None:
        job, node = self._group_jobs[key]
        for task, pid in zip(job.tasks[node], pids, strict=True):
            job.pids[task.rank] = pid
        if not job.shell_started and job.launcher is not None:
            job.shell_started = True
            service = f"{os.getuid()}-shell-{format_jobid(job.id)}"
            job.post_exec("shell.init", service=service, **{"leader-rank": 0}, size=len(job.groups))
            job.post_exec("shell.start", taskmap={"version": 1, "map": job.launcher.taskmap})

    def _task_not_started(self, key: str, index: int, error: OSError) -> None:
        job, node = self._group_jobs[key]
        task = job.tasks[node][index]
        what = error.filename or task.command.argv[0]
        where = f"task {task.rank} (host {socket.gethostname()})"
        self._raise(job, "exec", f"{where}: start failed: {what}: {error.strerror}")

    def _task_used(self, key: str, usage: Usage) -> None:
        job, _ = self._group_jobs[key]
        job.post_exec(TASK_USAGE, **asdict(usage))

    def _task_exited(self, key: str, index: int, status: int) -> None:
        job, node = self._group_jobs[key]
        task = job.tasks[node][index]
        job.post_task_exit(task, status)
        self._end_others(job, task.rank, status)

    def _end_others(self, job: LocalJob, rank: int, status: int) -> None:
        """End the other tasks, or limit their time: they may wait for the ended one."""
        assert job.spec is not None
        what = f"{job.spec.command[0]}: task rank {rank} on host {socket.gethostname()}"
        options = job.spec.shell_options
        if options.get("exit-on-error") and status != 0:  # Flux looks at the first to end only
            self._raise_if_running(job, "exec", f"{what} failed and exit-on-error is set")
        first, job.task_exited = not job.task_exited, True
        limit = seconds_of(options.get("exit-timeout"), default=EXIT_TIMEOUT)
        if first and limit is not None and sum(map(len, job.tasks)) > 1:
            note = f"{what} exited and exit-timeout={limit:g}s has expired"
            self._thread.after(limit, partial(self._raise_if_running, job, "exec", note))

    def _raise_if_pending(self, job: LocalJob, kind: str, note: str) -> None:
        if job.state is LocalJobState.PENDING:
            self._raise(job, kind, note)

    def _raise_if_running(self, job: LocalJob, kind: str, note: str) -> None:
        if job.state is LocalJobState.RUNNING and not job.is_ending:
            self._raise(job, kind, note)

    def _group_exited(self, key: str, status: int) -> None:
        job, node = self._group_jobs.pop(key)
        job.statuses[node] = status
        job.post_exec("shell-exit", rank=node, wait_status=status)
        if len(job.statuses) == len(job.groups):
            self._finish(job, max(job.statuses.values()))

    # ---- the end ----------------------------------------------------------------------------

    def _raise(
        self, job: LocalJob, kind: str, note: str, stop_signal: int = signal.SIGTERM
    ) -> None:
        """Post a fatal exception and end the job."""
        job.post("exception", type=kind, severity=0, note=note, userid=os.getuid())
        if job.state is LocalJobState.PENDING:
            job.post("clean")
            self._retire(job)
        elif not job.is_ending:
            job.is_ending = True
            self._signal_groups(job, stop_signal)
            self._thread.after(KILL_TIMEOUT, partial(self._kill_groups, job))

    def _expire(self, job: LocalJob) -> None:
        if job.state is LocalJobState.RUNNING and not job.is_ending:
            self._raise(job, "timeout", "resource allocation expired", signal.SIGALRM)

    def _cancel(self, jobid: int, note: str) -> None:
        job = self._find(jobid)
        if job.state is LocalJobState.INACTIVE:
            raise FileNotFoundError(errno.ENOENT, "job is inactive")
        self._raise(job, "cancel", note)

    def _signal_job(self, jobid: int, signum: int) -> None:
        if signum not in signal.valid_signals():
            raise OSError(errno.EINVAL, "Invalid signal number")
        job = self._jobs.get(jobid) or self._inactive.get(jobid)
        if job is None:
            raise OSError(errno.EINVAL, "unknown job id")
        if job.state is LocalJobState.INACTIVE:
            raise OSError(errno.EINVAL, "job is inactive")
        if job.state is LocalJobState.PENDING:
            raise OSError(errno.EINVAL, "job is not running")
        self._signal_groups(job, signum)

    def _signal_groups(self, job: LocalJob, signum: int) -> None:
        if self._keeper is not None:
            for group in job.groups:
                self._keeper.signal(group, signum)

    def _kill_groups(self, job: LocalJob) -> None:
        if self._keeper is not None:
            for group in job.groups:
                self._keeper.kill(group)

    def _finish(self, job: LocalJob, status: int) -> None:
        job.post_exec("complete", status=status)
        job.post_exec("done")
        # The temporary directory is gone before the end is reported, as with Flux's job shell.
        if job.launcher is not None:
            shutil.rmtree(job.launcher.temporary, ignore_errors=True)
        job.post("finish", status=status)
        self._pool.free(job.allocation)
        job.post("release", ranks="all", final=True)
        job.post("free")
        job.post("clean")
        self._retire(job)

    def _retire(self, job: LocalJob) -> None:
        job.retire()
        del self._jobs[job.id]
        self._inactive[job.id] = job
        self._dependencies.check(job)
        if len(self._inactive) > MAX_INACTIVE:
            self._inactive.popitem(last=False)
