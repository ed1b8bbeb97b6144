"""Follows the jobs of tasks, from submission to the task's result."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine import results
from flux_endpoint.engine.backend import Backend
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import placement_of
from flux_endpoint.engine.held.allocations import HeldAllocations
from flux_endpoint.engine.held.observations import Observations
from flux_endpoint.engine.held.tasks import DeclinedError
from flux_endpoint.engine.instance_state import Fate, InstanceState
from flux_endpoint.engine.job_queue import JobQueue
from flux_endpoint.engine.jobs.job import Ending, Job, JobListener, RunnerStop, is_job_exception
from flux_endpoint.engine.jobs.job_ends import EndReader
from flux_endpoint.engine.jobs.job_starter import JobStarter
from flux_endpoint.engine.jobs.plan import Planner
from flux_endpoint.engine.jobs.records import JobRecords
from flux_endpoint.engine.jobs.states import JOB_CHANGES, TASK_STATES, JobChange, JobState, Wish
from flux_endpoint.engine.jobs.verdict import Again, Left, Verdict, verdict_on, verdict_on_lost
from flux_endpoint.engine.leftovers import kill_tasks
from flux_endpoint.engine.outcome import error_of
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import Failure, Value
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.owner_thread import OwnerThread
from flux_endpoint.protocol.job_events import IN_ORDER, EventRecord
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.states import ActorName, ErrorCode

log = logging.getLogger(__name__)

#: Seconds in which the events of a recovered job arrive.
_CATCH_UP = 5.0
#: Timeout (s) for submissions and for reading ends when the engine stops.
_STOP_TIMEOUT = 5.0
#: Errors that mean a faulty task, or missing prerequisites on this host.
_REFUSALS = (FluxEndpointError, OSError, RuntimeError, TypeError, ValueError)


class JobRunner:
    """Runs tasks as jobs of their own. One thread owns all state; others post messages to it.

    `states.py` has the lifecycle of a job. Reading the end of a job may be slow, since it asks Flux
    and reads files, so an `EndReader` does that.

    Args:
        backend: where jobs run.
        planner: decides which job a task becomes.
        instance: state of the Flux instance.
        listener: callbacks for what becomes of tasks.
        endpoint_id: UUID that results name.
        config: options of the engine.
        output: log for the output of Python functions.
    """

    def __init__(
        self,
        backend: Backend,
        planner: Planner,
        instance: InstanceState,
        listener: JobListener,
        *,
        endpoint_id: str,
        config: FluxEngineConfig,
        output: OutputLog,
    ) -> None:
        self._backend = backend
        self._instance = instance
        self._listener = listener
        self._ends = EndReader(backend, instance, output, config.output_limit, listener.on_event)
        self._details = results.worker_details(endpoint_id)
        self._retries = config.max_retries_on_system_failure
        self._jobs: dict[str, Job] = {}
        #: Tasks whose ends the submitter may not have recorded yet.
        self._unsettled: set[str] = set()
        # On the embedded executor there are no other jobs.
        self._queue = JobQueue(complete=backend.kind == "local")
        #: Whether tasks become jobs; else only earlier jobs are followed.
        self._may_start = True
        #: Set when nothing runs and nothing more will start.
        self._drained = threading.Event()
        self._stopping: RunnerStop | None = None
        self._thread = OwnerThread("job-runner", after_turn=self._after_turn)
        records = JobRecords(backend, planner.directory)
        self._held = HeldAllocations(
            backend, planner, config, records, self._queue, post=self._thread.post
        )
        self._starter = JobStarter(backend, planner, records, self._held)

    def start(self) -> None:
        """Start the thread."""
        self._starter.records.open()
        self._thread.post(self._held.start)
        self._thread.start()

    def submit(self, task: EngineTask, attempts: list[str]) -> None:
        """Take a task; if its job from before a restart still exists, attach to it.

        Args:
            task: the task.
            attempts: why earlier attempts have failed.
        """
        self._thread.post(lambda: self._begin(task, attempts))

    def settle(self, task_ids: Collection[str]) -> None:
        """Forget the jobs of tasks whose ends the submitter has recorded."""
        # Most tasks have no job: for these, the thread is not woken.
        if mine := [task_id for task_id in task_ids if task_id in self._unsettled]:
            self._thread.post(lambda: self._settle(mine))

    def recovered(self, task_ids: Collection[str]) -> None:
        """Remove the files of earlier tasks, except `task_ids` and those known here."""
        self._thread.post(
            lambda: self._starter.records.remove_all_but({*task_ids, *self._jobs, *self._unsettled})
        )

    def cancel(self, task_id: str, signum: int | None) -> None:
        """End a task's job; with `signum`, only send that signal to its running processes."""
        self._thread.post(lambda: self._cancel(task_id, signum))

    def follow_output(self, task_id: str, seconds: float, known: tuple[int, int]) -> None:
        """Report what a task's job writes; see `Engine`."""
        self._thread.post(lambda: self._ends.follow(self._jobs.get(task_id), seconds, known))

    def set_urgency(self, task_id: str, urgency: int) -> None:
        """Set the urgency of a task's job, which has an effect as long as it waits."""
        self._thread.post(lambda: self._set_urgency(task_id, urgency))

    def hold(self) -> None:
        """Start nothing more and keep waiting tasks: Flux is about to end."""
        self._thread.post(self._hold)

    def wait(self, timeout: float) -> None:
        """After `hold`, wait at most `timeout` seconds until nothing runs."""
        self._drained.wait(timeout)

    def lose(self) -> None:
        """Handle the loss of the instance: fail what ran and may not be retried; leave the rest."""
        self._thread.post(self._lose)

    def terminate(self, reason: str) -> None:
        """Send SIGTERM to all running jobs, and start nothing more.

        Jobs that this ends are lost for `reason`.
        """
        self._thread.post(lambda: self._terminate(reason))

    def observe(self, action: Callable[[Observations], None]) -> None:
        """Record who waits for resources: held allocations make room for them."""
        self._thread.post(lambda: action(self._held.observed))

    def status(self) -> dict[str, Any]:
        """Return the counters of jobs."""
        jobs = list(self._jobs.values())
        return {
            "jobs": len(jobs),
            "waiting_jobs": sum(1 for job in jobs if not job.has_resources),
            **self._held.counters(),
        }

    def stop(self, *, keep: bool) -> None:
        """Stop following jobs; with `keep` they go on, to be found after a restart."""
        self._thread.post(lambda: self._begin_to_stop(keep=keep))
        self._thread.join()
        self._ends.close()

    # On the runner's thread

    def _after_turn(self) -> float:
        # Not a loop over all jobs: each event is a turn, and there may be very many jobs.
        look_again = self._held.review()
        if (demand := self._queue.news()) is not None:
            self._listener.on_demand(demand)
        if not self._may_start and all(job.is_followed for job in self._jobs.values()):
            self._drained.set()
        if self._stopping is None:
            return look_again
        return min(look_again, self._try_to_stop(self._stopping))

    def _begin_to_stop(self, *, keep: bool) -> None:
        self._stopping = RunnerStop(keep, time.monotonic() + _STOP_TIMEOUT)

    def _try_to_stop(self, stop: RunnerStop) -> float:
        """Stop unless something must be awaited; return for how many seconds at most.

        Otherwise jobs would not be found again, and tasks that have just ended would run again.
        After the stop nothing is reported, not even the jobs that are cancelled here.
        """
        left = stop.until - time.monotonic()
        pending = not self._thread.is_idle or any(
            job.state is JobState.READING
            or (stop.keep and job.jobid is None and not (job.is_held or job.future.done()))
            for job in self._jobs.values()
        )
        if pending and left > 0:
            return left
        if not stop.keep:
            self._cancel_all(self._jobs.values(), "the endpoint stops")
        self._held.close()
        self._thread.stop()
        return math.inf

    # Starting jobs

    def _begin(self, task: EngineTask, attempts: list[str], *, alone: bool = False) -> None:
        if self._instance.now.is_lost:
            self._leave(task, attempts)
            return
        try:
            plan = self._starter.plan(task)
            job = self._starter.find(task, plan)
            if job is None:
                if not self._may_start or (task.start_before or math.inf) <= time.time():
                    self._listener.on_left(task.task_id, attempts)
                    return
                job = self._starter.submit(task, plan, alone=alone)
        except Exception as error:
            if self._backend.is_lost(error):
                self._leave(task, attempts)
                return
            if not isinstance(error, _REFUSALS):  # an internal error, which affects this task only
                log.exception("no job could be made of task %s", task.task_id)
            text = f"{type(error).__name__}: {error}"
            self._report_end(task, Failure(ErrorCode.ENGINE_REFUSED, text))
            return
        job.attempts = attempts
        self._jobs[task.task_id] = job
        if task.start_before is not None:
            # It is not known yet whether a recovered job is running.
            known = time.time() + _CATCH_UP if job.state is JobState.FOUND else 0.0
            job.start_before = max(task.start_before, known)
            self._end_if_late(task.task_id)
        self._follow(job)

    def _follow(self, job: Job) -> None:
        post = self._thread.post
        job.future.add_jobid_callback(lambda _: post(lambda: self._identified(job)))
        for name in IN_ORDER:
            job.future.add_event_callback(
                name, lambda _, event: post(partial(self._event, job, event))
            )
        job.future.add_done_callback(lambda _: post(lambda: self._done(job)))

    def _identified(self, job: Job) -> None:
        try:
            job.jobid = int(job.future.jobid(timeout=0))
        except (RuntimeError, CancelledError):
            return  # never submitted; its end says why
        if job.wish is not Wish.NONE:
            job.withdraw("ended on request")
        if job.is_held:
            return
        job.identified()
        self._queue.add(job.jobid, job.demand)
        if job.is_followed or job.has_ended:
            return
        self._starter.records.identified(job.task.task_id, job.jobid, job.output.starts)
        logs.event(
            log, logging.DEBUG, "job submitted", task=job.task.task_id, job=format_jobid(job.jobid)
        )

    # Events of jobs

    def _advance(self, job: Job, event: JobChange) -> bool:
        """Apply an event to a job and act on it; return whether its state has changed."""
        if not job.advance(event):
            return False
        self._ends.advanced(job)
        if job.state is JobState.READING:
            self._ends.read(job).add_done_callback(
                lambda done: self._thread.post(partial(self._has_read, job, done))
            )
        elif job.has_ended:
            del self._jobs[job.task.task_id]
        return True

    def _event(self, job: Job, event: EventRecord) -> None:
        if (state := TASK_STATES.get(event.name)) is not None:
            job.statuses.append(results.transition(state, ActorName.ENDPOINT))
        if job.jobid is not None:
            placement = placement_of(event.context) if event.name == "alloc" else {}
            job.hosts = self._backend.hostlist(placement) if placement else job.hosts
            if not job.is_held:
                self._queue.event(job.jobid, event.name, event.context, placement)
        self._listener.on_event(
            EngineEvent(job.task.task_id, job.jobid, event.name, event.timestamp, event.context)
        )
        if (happening := JOB_CHANGES.get(event.name)) is not None:
            self._advance(job, happening)

    def _done(self, job: Job) -> None:
        """Handle a done future: the job has ended, or can't be followed any more."""
        if job.has_ended:
            return
        error, event = error_of(job.future), JobChange.DONE
        if isinstance(error, DeclinedError) and job.wish is Wish.NONE:
            self._again(job, job.attempts, alone=True)
            return
        if is_job_exception(error):
            if job.jobid is not None:
                event = JobChange.EXCEPTION  # no result before its processes are gone
        elif error is not None and self._backend.is_lost(error):
            event = JobChange.INSTANCE_ENDS
        elif error is not None and job.jobid is not None and not job.is_held:
            self._queue.forget(job.jobid)  # there are no more events of it
            if job.state is JobState.FOUND and isinstance(error, ValueError):
                self._again(job, job.attempts)  # Flux no longer knows that job
                return
            # It may still run, but its end could not be seen: its task must not run twice.
            self._cancel_all([job], "it can't be followed any more")
        self._advance(job, event)

    def _has_read(self, job: Job, reading: Future[Ending]) -> None:
        try:
            ending = reading.result()
            job.measured = ending.details
            if ending.fate is Fate.AWAITS_LOSS:
                if self._instance.now.is_lost:
                    self._lose_job(job, was_started=job.has_resources)
                else:
                    self._advance(job, JobChange.INSTANCE_ENDS)
                return
            verdict = verdict_on(
                job,
                ending,
                retries=self._retries,
                ends_jobs=self._instance.ends_jobs,
                resources=self._backend.resources,
            )
        except Exception as unexpected:
            log.exception("a job's end could not be read")
            verdict = Failure(ErrorCode.UNKNOWN, f"EngineError: {unexpected!r}")
        self._conclude(job, verdict)

    def _lose_job(self, job: Job, *, was_started: bool) -> None:
        why = self._instance.now.reason
        self._conclude(
            job, verdict_on_lost(job, why, was_started=was_started, retries=self._retries)
        )

    def _conclude(self, job: Job, verdict: Verdict) -> None:
        """Finish a job, and its task unless that gets another job."""
        task = job.task
        match verdict:
            case Left(attempts):
                if self._advance(job, JobChange.RELEASE):
                    self._leave(task, attempts)
            case Again(attempts):
                why = attempts[-1]
                logs.event(log, logging.WARNING, "job lost, retrying", task=task.task_id, why=why)
                self._again(job, attempts)
            case _:
                if self._advance(job, JobChange.RESULT):
                    self._report_end(task, verdict, job)

    def _again(self, job: Job, attempts: list[str], *, alone: bool = False) -> None:
        if self._advance(job, JobChange.RELEASE):
            self._starter.records.forget(job.task.task_id)
            self._begin(job.task, attempts, alone=alone)

    def _leave(self, task: EngineTask, attempts: list[str]) -> None:
        """Leave a task without a result: it runs again when there are resources for it."""
        self._starter.records.forget(task.task_id)
        self._listener.on_left(task.task_id, attempts)

    def _report_end(self, task: EngineTask, end: Value | Failure, job: Job | None = None) -> None:
        details, statuses = self._details, [] if job is None else job.statuses
        if job is not None:
            details = {**details, **job.details()}
        self._unsettled.add(task.task_id)
        body = results.body_of(task.task_id, end, details, statuses)
        self._listener.on_result(EngineResult(task.task_id, body))

    def _settle(self, task_ids: Collection[str]) -> None:
        for task_id in self._unsettled.intersection(task_ids):
            self._unsettled.remove(task_id)
            self._starter.records.remove(task_id)

    # Ending jobs on request

    def _cancel(self, task_id: str, signum: int | None) -> None:
        job = self._jobs.get(task_id)
        if job is None or job.state is JobState.READING:
            return
        if signum is not None:  # for a running job; of a recovered one, Flux knows whether it runs
            if job.jobid is not None and job.reached is not JobState.WAITING:
                job.control.kill(job.jobid, signum)
            return
        job.want(Wish.CANCEL)
        job.withdraw("ended on request")

    def _set_urgency(self, task_id: str, urgency: int) -> None:
        if (job := self._jobs.get(task_id)) is not None:
            job.set_urgency(urgency)

    def _end_if_late(self, task_id: str) -> None:
        """Withdraw a task's waiting job if its latest start has passed; else, look again then."""
        job = self._jobs.get(task_id)
        if job is not None and 0 < (left := job.withdraw_if_late()) < math.inf:
            self._thread.after(left, partial(self._end_if_late, task_id))

    def _terminate(self, reason: str) -> None:
        self._may_start = False
        for job in list(self._jobs.values()):
            if job.reached is not JobState.FOUND:  # else it is not known yet whether it runs
                job.start_before = 0.0
                job.withdraw_if_late()
            job.terminate(reason)

    def _hold(self) -> None:
        self._may_start = False
        for job in list(self._jobs.values()):
            if job.has_resources or job.state is JobState.READING:
                continue
            if not job.is_followed and job.wish is not Wish.CANCEL:
                job.want(Wish.WITHDRAW)  # `_identified` does it if there is no id yet
                job.withdraw("the Flux instance is ending")
                self._conclude(job, Left(job.attempts))
        self._held.hold()

    def _lose(self) -> None:
        self._may_start = False
        jobs = {id_: job for id_, job in self._jobs.items() if job.state is not JobState.READING}
        # Flux no longer ends them; the owner of other hosts cleans up there. Flux may have started
        # jobs that it has not reported yet.
        started = kill_tasks(jobs)
        for task_id, job in jobs.items():
            self._lose_job(job, was_started=job.has_resources or task_id in started)
        self._held.lose()
        if not self._backend.is_lost(None):
            self._cancel_all(jobs.values(), self._instance.now.reason)

    def _cancel_all(self, jobs: Iterable[Job], note: str) -> None:
        for job in jobs:
            if not job.is_followed and job.state is not JobState.READING:
                job.cancel(note)
