"""Following the jobs that tasks became, from submission to the task's result."""

from __future__ import annotations

import logging
import math
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine import results
from flux_endpoint.engine.attempts import failure_text
from flux_endpoint.engine.backend import Backend, JobEvent, JobFuture
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.engine.demand import JobDemand, placement_of
from flux_endpoint.engine.job_queue import JobQueue
from flux_endpoint.engine.jobs.collect import collect, printed, shell_result
from flux_endpoint.engine.jobs.exchange import write_task
from flux_endpoint.engine.jobs.job import (
    Ending,
    Job,
    demand_of,
    failure_of,
    has_no_limit,
    is_job_exception,
    not_followed,
    prepare_output,
    was_ended,
    was_terminated,
)
from flux_endpoint.engine.jobs.plan import FollowPlan, JobPlan, Planner, RanksPlan
from flux_endpoint.engine.jobs.records import JobRecords
from flux_endpoint.engine.jobspec import build_jobspec
from flux_endpoint.engine.leftovers import kill_tasks
from flux_endpoint.engine.outcome import (
    Cancelled,
    Failed,
    Finished,
    Lost,
    Outcome,
    Refused,
    error_of,
    outcome_of,
    was_cancelled,
)
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import Failure, Value
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.protocol.job_events import IN_ORDER
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.messages import JOBID
from flux_endpoint.protocol.states import ActorName, ErrorCode, TaskState

log = logging.getLogger(__name__)

#: Seconds in which the events of a job that was found again come in.
_CATCH_UP = 5.0
#: Seconds that Flux has to take a job, and threads to read the end of one, when the engine stops.
_LAST_PATIENCE = 5.0
#: Most ends that are read at a time.
_READERS = 8
#: What is wrong with a task, or with what it needs here, raises one of these.
_REFUSALS = (FluxEndpointError, OSError, RuntimeError, TypeError, ValueError)


class JobRunner:
    """Runs tasks as jobs of their own. One thread owns all state; others leave messages.

    What a job's end is takes questions to Flux and files that may be large or slow: other threads
    read it, so that no job waits for another's.

    Args:
        backend: where jobs run.
        planner: decides what job a task becomes.
        retries: how often a task is tried again that the system, not its user, failed.
        on_left: told the id of each task that is left to others, and why attempts at it failed.
        is_over: whether the instance has come to its time limit or its end, and ends jobs.
        awaits_loss: whether the instance is ending, and `lose` comes.
        on_result: given every task's end.
        on_event: given every event of every job.
        on_demand: told what these jobs have and want whenever that has changed.
        output: gets what Python functions print.
    """

    def __init__(
        self,
        backend: Backend,
        planner: Planner,
        *,
        endpoint_id: str,
        retries: int,
        on_left: Callable[[str, list[str]], None],
        is_over: Callable[[], bool],
        awaits_loss: Callable[[], bool],
        on_result: Callable[[EngineResult], None],
        on_event: Callable[[EngineEvent], None],
        on_demand: Callable[[JobDemand], None],
        output: OutputLog,
    ) -> None:
        self._output = output
        self._backend = backend
        self._planner = planner
        self._records = JobRecords(backend, planner.directory)
        #: Tasks whose ends the submitter may not have recorded yet.
        self._unsettled: set[str] = set()
        self._details = results.worker_details(endpoint_id)
        self._retries = retries
        self._on_left = on_left
        self._is_over = is_over
        self._awaits_loss = awaits_loss
        #: Whether nothing is started any more.
        self._closed = False
        #: Why there is nothing left to run jobs on.
        self._lost = ""
        #: Whether Flux ends: what it cancels with it is left.
        self._ending = False
        #: Set when nothing more is started and nothing runs.
        self._drained = threading.Event()
        self._on_result = on_result
        self._on_event = on_event
        self._on_demand = on_demand
        self._jobs: dict[str, Job] = {}
        # On the embedded executor there are no others.
        self._queue = JobQueue(complete=backend.kind == "local")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="job-ends")
        self._stopped = False
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="job-runner", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._planner.directory.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def submit(self, task: EngineTask, attempts: list[str]) -> None:
        """Take a task; one whose job still runs, from before a restart, is attached to it.

        Args:
            task: the task.
            attempts: why earlier attempts at it have failed.
        """
        self._inbox.put(lambda: self._begin(task, attempts))

    def settle(self, task_ids: Collection[str]) -> None:
        """Forget jobs of tasks whose ends the submitter has recorded."""
        self._inbox.put(lambda: self._settle(task_ids))

    def recovered(self, task_ids: Collection[str]) -> None:
        """Remove what an earlier runner has left of other tasks than these."""
        self._inbox.put(lambda: self._records.remove_all_but({*task_ids, *self._jobs}))

    def cancel(self, task_id: str, signum: int | None) -> None:
        """End a task's job; with `signum` only send that signal to its processes, if it runs."""
        self._inbox.put(lambda: self._cancel(task_id, signum))

    def hold(self) -> None:
        """Start nothing more, and keep what waits: Flux is about to end."""
        self._inbox.put(self._hold)

    def wait(self, timeout: float) -> None:
        """After `hold`, wait at most `timeout` seconds until nothing runs."""
        self._drained.wait(timeout)

    def lose(self, reason: str) -> None:
        """End what runs and may not be tried again, and keep the rest: nothing runs any more."""
        self._inbox.put(lambda: self._lose(reason))

    def terminate(self, reason: str) -> None:
        """Signal all that runs (SIGTERM), and start nothing more.

        What ends of the signal is lost for this reason.
        """
        self._inbox.put(lambda: self._terminate(reason))

    def status(self) -> dict[str, Any]:
        """Return counters."""
        jobs = list(self._jobs.values())
        return {
            "jobs": len(jobs),
            "waiting_jobs": sum(1 for job in jobs if not job.allocated),
        }

    def stop(self, *, keep: bool) -> None:
        """Stop following jobs; `keep` leaves them running, to be found after a restart."""
        self._inbox.put(lambda: self._stop(keep=keep))
        self._thread.join()
        self._readers.shutdown(wait=False, cancel_futures=True)

    # The runner's thread

    def _run(self) -> None:
        while not self._stopped:
            self._safely(self._next())
            if (demand := self._queue.news()) is not None:
                self._on_demand(demand)
            if self._closed and self._only_follows():
                self._drained.set()

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            log.exception("a job's message could not be dealt with; the others go on")

    def _only_follows(self) -> bool:
        return all(isinstance(job.plan, FollowPlan) for job in self._jobs.values())

    def _stop(self, *, keep: bool) -> None:
        """Tell no result any more, not even that what is cancelled here was cancelled."""
        # Else jobs would not be found, and what has just ended would run again.
        self._await(lambda job: job.concluding or (keep and job.jobid is None and not job.done))
        if not keep:
            self._cancel_all(self._jobs.values(), "the endpoint stops")
        self._stopped = True

    def _await(self, is_pending: Callable[[Job], bool]) -> None:
        until = time.monotonic() + _LAST_PATIENCE
        while (left := until - time.monotonic()) > 0:
            pending = any(is_pending(job) for job in self._jobs.values())
            try:  # what has come already is in the inbox
                self._safely(self._inbox.get(timeout=left if pending else 0.0))
            except queue.Empty:
                return

    def _next(self) -> Callable[[], None]:
        """Return what is to be done next: a message, or what its time has come for."""
        pending = (job for job in self._jobs.values() if job.waits)
        due = min((job.start_before for job in pending), default=math.inf)
        if math.isinf(due):
            return self._inbox.get()
        try:
            return self._inbox.get(timeout=max(0.0, due - time.time()))
        except queue.Empty:
            return self._end_late

    def _end_late(self) -> None:
        """End the jobs that wait for resources and must not be started any more."""
        now = time.time()
        for job in list(self._jobs.values()):
            if job.waits and job.start_before <= now:
                job.late = True
                self._withdraw(job, "it could not start in time")

    def _begin(self, task: EngineTask, attempts: list[str]) -> None:
        if self._lost:
            self._leave(task, attempts)
            return
        try:
            plan = self._planner.plan(task)
            job = self._attach(task, plan)
            if job is None:
                if self._closed or (task.start_before or math.inf) <= time.time():
                    self._on_left(task.task_id, attempts)
                    return
                job = self._submit(task, plan)
        except Exception as error:
            if self._backend.is_lost(error):
                self._leave(task, attempts)
                return
            if not isinstance(error, _REFUSALS):  # a fault of ours, which concerns this task alone
                log.exception("no job could be made of task %s", task.task_id)
            self._end(task, Failure(ErrorCode.ENGINE_REFUSED, f"{type(error).__name__}: {error}"))
            return
        job.attempts = attempts
        if task.start_before is not None:
            # Whether one that was found again runs already is not known yet.
            known = time.time() + _CATCH_UP if job.attached else 0.0
            job.start_before = max(task.start_before, known)
        self._jobs[task.task_id] = job
        self._follow(job)

    def _submit(self, task: EngineTask, plan: JobPlan) -> Job:
        if isinstance(plan, FollowPlan):
            return Job(task, plan, self._backend.executor.attach(plan.jobid), (0, 0))
        Path(plan.request.cwd).mkdir(parents=True, exist_ok=True)
        if isinstance(plan, RanksPlan):
            shutil.rmtree(plan.directory, ignore_errors=True)  # of an earlier attempt
            write_task(
                plan.directory,
                task.task_id,
                task.buffer,
                task.result_serializers,
                self._planner.tasks,
            )
        starts = prepare_output(plan)
        mark = self._records.begin(task.task_id, starts, plan.request.mark or {})
        jobspec = build_jobspec(replace(plan.request, mark=mark))
        future = self._backend.submit(jobspec, urgency=plan.request.resources.urgency)
        return Job(task, plan, future, starts)

    def _attach(self, task: EngineTask, plan: JobPlan) -> Job | None:
        """Return the job that was submitted for this task before a restart, if there is one."""
        found = self._records.find(task.task_id)
        if found is None:
            return None
        logs.event(
            log, logging.INFO, "attaching to job", task=task.task_id, job=format_jobid(found.jobid)
        )
        future = self._backend.executor.attach(found.jobid)
        return Job(task, plan, future, found.starts, jobid=found.jobid, attached=True)

    def _follow(self, job: Job) -> None:
        job.future.add_jobid_callback(lambda _: self._inbox.put(lambda: self._identified(job)))
        for name in IN_ORDER:
            job.future.add_event_callback(
                name, lambda _, event: self._inbox.put(partial(self._event, job, event))
            )
        job.future.add_done_callback(lambda _: self._inbox.put(lambda: self._ended(job)))

    def _identified(self, job: Job) -> None:
        try:
            job.jobid = int(job.future.jobid(timeout=0))
        except (RuntimeError, CancelledError):
            return  # never submitted; its end says why
        if job.cancelled or job.late:
            self._withdraw(job, "ended on request")
        self._queue.add(job.jobid, demand_of(job))
        if isinstance(job.plan, FollowPlan) or self._jobs.get(job.task.task_id) is not job:
            return
        self._records.identified(job.task.task_id, job.jobid, job.starts)
        logs.event(
            log, logging.DEBUG, "job submitted", task=job.task.task_id, job=format_jobid(job.jobid)
        )

    def _event(self, job: Job, event: JobEvent) -> None:
        match event.name:
            case "submit":
                job.statuses.append(
                    results.transition(TaskState.WAITING_FOR_NODES, ActorName.ENDPOINT)
                )
            case "alloc":
                job.allocated = True
            case "start":
                job.started = True
                job.statuses.append(results.transition(TaskState.EXEC_START, ActorName.ENDPOINT))
            case "finish":
                job.statuses.append(results.transition(TaskState.EXEC_END, ActorName.ENDPOINT))
            case "clean":
                job.clean = True
        if job.jobid is not None:
            placement = placement_of(event.context) if event.name == "alloc" else {}
            self._queue.event(job.jobid, event.name, event.context, placement)
        self._on_event(
            EngineEvent(job.task.task_id, job.jobid, event.name, event.timestamp, event.context)
        )
        if job.clean and job.failed:
            self._ended(job)

    def _ended(self, job: Job) -> None:
        task_id = job.task.task_id
        error = error_of(job.future)
        if self._jobs.get(task_id) is not job or job.concluding:
            return
        if error is not None and not is_job_exception(error) and self._backend.is_lost(error):
            return  # with the instance, all jobs end together
        if job.jobid is not None and is_job_exception(error) and not job.clean:
            job.failed = True  # its processes are being ended: no result before they are
            return
        if job.jobid is not None and error is not None and not is_job_exception(error):
            self._queue.forget(job.jobid)  # no events of it come any more
        if job.attached and isinstance(error, ValueError):
            del self._jobs[task_id]
            self._records.forget(task_id)
            self._begin(job.task, job.attempts)  # Flux knows nothing of that job any more
            return
        if job.jobid is not None and error is not None and not is_job_exception(error):
            # It may go on, where nobody gets to know of its end: then its task must not run again.
            self._cancel_all([job], "it can't be followed any more")
        job.concluding = True
        reading = self._readers.submit(self._read_end, job, error)
        reading.add_done_callback(lambda done: self._inbox.put(partial(self._concluded, job, done)))

    def _read_end(self, job: Job, error: BaseException | None) -> Ending:
        """Find out what a job's end means. Runs on a thread of its own, and may take long."""
        if isinstance(job.plan, FollowPlan) and isinstance(error, (OSError, ValueError)):
            return Ending(Refused(not_followed(job.plan.jobid, error)))
        unasked = was_cancelled(error) and not (job.cancelled or job.late)
        if unasked and self._awaits_loss():
            return Ending(Cancelled(""), awaits_loss=True)
        outcome = self._outcome(job, error)
        if job.jobid is not None and was_ended(outcome):
            # No result before the whole process tree is gone.
            self._backend.sweep(job.jobid, f"GC_TASK_UUID={job.task.task_id}")
        # Flux cancels all jobs at the instance's end.
        by_instance = isinstance(outcome, Cancelled) and not (job.cancelled or job.late)
        if (by_instance or has_no_limit(job, outcome)) and self._is_over():
            return Ending(outcome, is_over=True)
        return Ending(
            outcome, self._collect(job, outcome) if isinstance(outcome, Finished) else None
        )

    def _outcome(self, job: Job, error: BaseException | None) -> Outcome:
        if job.cancelled:
            return Cancelled("ended on request")
        status = None if error is not None else job.future.result(timeout=0)
        events: list[dict[str, Any]] = []
        if job.jobid is not None and status != 0:  # with 0, there is nothing to add
            events = self._backend.exec_events(job.jobid)
        outcome = outcome_of(status, error, events, submitted=job.jobid is not None)
        if job.late and job.started and isinstance(outcome, Cancelled):
            return Lost("it was started when it was just being withdrawn")
        if job.ending and was_terminated(outcome):
            return Lost(job.ending)
        return outcome

    def _concluded(self, job: Job, reading: Future[Ending]) -> None:
        job.concluding = False
        if self._jobs.get(job.task.task_id) is not job:
            return
        try:
            ending = reading.result()
            if ending.awaits_loss and not self._lost:
                return  # with the instance, all jobs end together
            del self._jobs[job.task.task_id]
            if ending.awaits_loss:
                self._lose_job(job, was_started=job.allocated)
            else:
                self._carry_out(job, ending)
        except Exception as unexpected:
            log.exception("a job's end could not be read")
            self._jobs.pop(job.task.task_id, None)
            self._end(job.task, Failure(ErrorCode.UNKNOWN, f"EngineError: {unexpected!r}"))

    def _carry_out(self, job: Job, ending: Ending) -> None:
        end = ending.end
        match ending.outcome:
            case Cancelled() if not job.cancelled and (
                job.late or self._ending or ending.is_over  # Flux cancels all jobs at its end
            ):
                self._leave(job.task, job.attempts)
                return
            case Finished() if ending.is_over:
                self._leave(job.task, job.attempts)  # the time that is over is the instance's
                return
            case Cancelled(note):
                text = f"TaskCancelled: {note or 'the job was cancelled'}"
                end = Failure(ErrorCode.CANCELLED, text)
            case Refused(reason):
                if "unsatisfiable" in reason:
                    reason = f"{reason} (in all, there are {self._backend.resources})"
                end = Failure(ErrorCode.ENGINE_REFUSED, reason)
            case Failed(reason):
                end = Failure(ErrorCode.COULD_NOT_EXECUTE, failure_of(job.plan, reason))
            case Lost(reason):
                attempts = [*job.attempts, reason]
                if len(attempts) <= self._retries:
                    logs.event(
                        log, logging.WARNING, "job lost, again", task=job.task.task_id, why=reason
                    )
                    self._records.forget(job.task.task_id)
                    self._begin(job.task, attempts)
                    return
                end = Failure(ErrorCode.WORKER_LOST, failure_text("JobLost", attempts))
        assert end is not None  # a job that has finished has one
        self._end(job.task, end, job.statuses, job.jobid)

    def _collect(self, job: Job, outcome: Finished) -> Value | Failure:
        serializers = job.task.result_serializers
        if isinstance(job.plan, FollowPlan):
            report = self._backend.report(job.plan.jobid)
            return shell_result(report.command, report.stdout, report.stderr, outcome, serializers)
        if isinstance(job.plan, RanksPlan):
            self._output.write(printed(job.plan))
        return collect(job.plan, outcome, serializers, job.starts)

    def _end(
        self,
        task: EngineTask,
        end: Value | Failure,
        statuses: list[dict[str, Any]] | None = None,
        jobid: int | None = None,
    ) -> None:
        # The job's events go another way than its result, and may come later.
        told = {} if jobid is None else {JOBID: str(jobid)}
        body = results.body_of(task.task_id, end, {**self._details, **told}, statuses or [])
        self._unsettled.add(task.task_id)
        self._on_result(EngineResult(task.task_id, body))

    def _settle(self, task_ids: Collection[str]) -> None:
        for task_id in task_ids:
            if task_id in self._unsettled:
                self._unsettled.remove(task_id)
                self._records.remove(task_id)

    def _cancel(self, task_id: str, signum: int | None) -> None:
        job = self._jobs.get(task_id)
        if job is None or job.concluding:
            return
        if signum is not None:  # it is for what runs; of one that was found, Flux knows
            if job.jobid is not None and (job.allocated or job.attached):
                self._backend.kill(job.jobid, signum)
            return
        job.cancelled = True
        self._withdraw(job, "ended on request")

    def _withdraw(self, job: Job, note: str) -> None:
        if job.jobid is not None:
            self._backend.cancel(job.jobid, note)
        else:
            job.future.cancel()  # else `_identified` cancels the job

    def _terminate(self, reason: str) -> None:
        self._closed = True
        for job in self._jobs.values():
            if not job.attached:  # else it isn't known yet whether it runs
                job.start_before = 0.0
        self._end_late()
        for job in self._jobs.values():
            if job.runs and job.jobid is not None and not isinstance(job.plan, FollowPlan):
                job.ending = reason
                self._backend.kill(job.jobid, signal.SIGTERM)

    def _hold(self) -> None:
        self._closed = self._ending = True
        for job in [job for job in self._jobs.values() if not job.allocated]:
            if isinstance(job.plan, FollowPlan) or job.cancelled or job.concluding:
                continue
            del self._jobs[job.task.task_id]
            job.cancelled = True  # by `_identified`, where it has no id yet
            self._withdraw(job, "the Flux instance is ending")
            self._leave(job.task, job.attempts)

    def _lose(self, reason: str) -> None:
        self._closed, self._lost = True, reason
        jobs = {task_id: job for task_id, job in self._jobs.items() if not job.concluding}
        self._jobs = {task_id: job for task_id, job in self._jobs.items() if job.concluding}
        # Flux ends them no more; those of other hosts are for whoever lent the hosts. What it has
        # started, it may not have told yet.
        started = kill_tasks(jobs)
        for task_id, job in jobs.items():
            self._lose_job(job, was_started=job.allocated or task_id in started)
        if not self._backend.is_lost(None):
            self._cancel_all(jobs.values(), reason)

    def _lose_job(self, job: Job, *, was_started: bool) -> None:
        attempts = [*job.attempts, f"{self._lost}, while the task's job ran"]
        if job.cancelled:
            self._carry_out(job, Ending(Cancelled("ended on request")))
        elif isinstance(job.plan, FollowPlan):
            text = f"job {format_jobid(job.plan.jobid)} can't be followed any more: {self._lost}"
            self._end(job.task, Failure(ErrorCode.WORKER_LOST, f"JobLost: {text}"))
        elif not was_started:
            self._leave(job.task, job.attempts)
        elif len(attempts) <= self._retries:
            self._leave(job.task, attempts)
        else:
            text = failure_text("JobLost", attempts)
            self._end(job.task, Failure(ErrorCode.WORKER_LOST, text), job.statuses)

    def _leave(self, task: EngineTask, attempts: list[str]) -> None:
        """Leave a task without an end: it is run again when there is something to run it on."""
        self._records.forget(task.task_id)
        self._on_left(task.task_id, attempts)

    def _cancel_all(self, jobs: Iterable[Job], note: str) -> None:
        for job in jobs:
            if isinstance(job.plan, FollowPlan) or job.concluding:
                continue
            if job.jobid is not None:
                self._backend.cancel(job.jobid, note)
            elif not job.future.cancel():  # it is being submitted, and nobody hears of its id here
                job.future.add_jobid_callback(partial(self._cancel_late, note))

    def _cancel_late(self, note: str, future: JobFuture) -> None:
        """Runs on the executor's thread."""
        with suppress(RuntimeError, CancelledError):  # it was never submitted
            self._backend.cancel(future.jobid(timeout=0), note)
