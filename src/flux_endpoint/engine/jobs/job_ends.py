"""Reads how a job ended, and what it writes until then.

This asks Flux and reads files, and may take long: it has threads of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from flux_endpoint.engine import results
from flux_endpoint.engine.backend import Backend
from flux_endpoint.engine.base import EngineEvent
from flux_endpoint.engine.instance_state import Fate, InstanceState
from flux_endpoint.engine.jobs.collect import (
    collect,
    printed,
    shell_result,
    usage_of_ranks,
)
from flux_endpoint.engine.jobs.job import (
    Ending,
    Job,
    has_no_limit,
    not_followed,
    was_ended,
    was_terminated,
)
from flux_endpoint.engine.jobs.job_follower import JobFollower
from flux_endpoint.engine.jobs.plan import CommandPlan, FollowPlan, RanksPlan
from flux_endpoint.engine.jobs.states import JobState, Wish
from flux_endpoint.engine.outcome import (
    Cancelled,
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
from flux_endpoint.usage import Usage

#: The most ends that are read at a time.
_READERS = 8


class EndReader:
    """Reads the ends of jobs on its own threads, so that no job waits for another's.

    Args:
        backend: where the jobs ran.
        instance: knows whether the instance ended them.
        output: log for the output of Python functions.
        output_limit: the most bytes of each stream of a task that go with its result.
        on_event: called with what the jobs of followed tasks write.
    """

    def __init__(
        self,
        backend: Backend,
        instance: InstanceState,
        output: OutputLog,
        output_limit: int,
        on_event: Callable[[EngineEvent], None],
    ) -> None:
        self._output_limit = output_limit
        self._backend = backend
        self._instance = instance
        self._output = output
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="job-ends")
        self._follower = JobFollower(output_limit, on_event)

    def read(self, job: Job) -> Future[Ending]:
        """Start reading the end of a job whose future is done."""
        return self._readers.submit(self._read, job)

    def follow(self, job: Job | None, seconds: float, known: tuple[int, int]) -> None:
        """Report what a job writes for `seconds`, from the positions in `known` on."""
        if job is not None and not job.is_followed:
            self._follower.follow(job.task.task_id, job.output, seconds, known)

    def advanced(self, job: Job) -> None:
        """Handle that a job has another state: its output begins, or has ended."""
        if job.has_ended:
            self._follower.forget(job.task.task_id)
        elif job.has_resources:
            self._follower.opened(job.output)

    def close(self) -> None:
        """Start no more reads; running ones go on."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._follower.close()

    def _read(self, job: Job) -> Ending:
        error = error_of(job.future)
        if isinstance(job.plan, FollowPlan) and isinstance(error, (OSError, ValueError)):
            return Ending(Refused(not_followed(job.plan.jobid, error)))
        unasked = job.wish is Wish.NONE
        was_ended_by_others = was_cancelled(error) or isinstance(error, CancelledError)
        # Flux also cancels jobs when the instance ends.
        fate = self._instance.fate() if unasked and was_ended_by_others else Fate.OWN_END
        if fate is Fate.AWAITS_LOSS:
            return Ending(Cancelled(""), fate=fate)
        outcome = self._outcome(job, error)
        was_lost = job.is_held and isinstance(outcome, Lost)
        if job.jobid is not None and (was_lost or was_ended(outcome)):
            # No result before the whole process tree is gone.
            job.control.sweep(job.jobid, f"GC_TASK_UUID={job.task.task_id}")
        if has_no_limit(job, outcome):  # the limit was the instance's
            fate = self._instance.fate()
        if fate is Fate.LEFT:
            return Ending(outcome, fate=fate)
        end = self._collect(job, outcome) if isinstance(outcome, Finished) else None
        return Ending(outcome, end, details=self._details(job, outcome))

    def _details(self, job: Job, outcome: Outcome) -> dict[str, Any]:
        details = results.usage_details(self._usage(job))
        is_in_result = isinstance(job.plan, CommandPlan) and isinstance(outcome, Finished)
        # The value of a command has lines without positions: not enough for a follower.
        is_enough = is_in_result and not job.output.was_followed
        if isinstance(job.plan, FollowPlan) or is_enough:
            return details
        return details | results.output_details(job.output.tails(self._output_limit))

    def _usage(self, job: Job) -> Usage | None:
        if isinstance(job.plan, RanksPlan):
            return usage_of_ranks(job.plan)
        return None if job.jobid is None or job.is_followed else job.control.job_usage(job.jobid)

    def _outcome(self, job: Job, error: BaseException | None) -> Outcome:
        if job.wish is Wish.CANCEL:
            return Cancelled("ended on request")
        status = None if error is not None else job.future.result(timeout=0)
        events: list[dict[str, Any]] = []
        if job.jobid is not None and status != 0:  # with status 0 the log adds nothing
            events = job.control.exec_events(job.jobid)
        outcome = outcome_of(status, error, events, submitted=job.jobid is not None)
        was_started = job.reached is JobState.RUNNING
        if job.wish is Wish.WITHDRAW and was_started and isinstance(outcome, Cancelled):
            return Lost("it started while it was being withdrawn")
        if job.terminated and was_terminated(outcome):
            return Lost(job.terminated)
        return outcome

    def _collect(self, job: Job, outcome: Finished) -> Value | Failure:
        serializers = job.task.result_serializers
        if isinstance(job.plan, FollowPlan):
            report = self._backend.report(job.plan.jobid)
            return shell_result(report.command, report.stdout, report.stderr, outcome, serializers)
        if isinstance(job.plan, RanksPlan):
            self._output.write(printed(job.plan))
        return collect(job.plan, outcome, serializers, job.output.starts)
