"""Decides what becomes of a task whose job has ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from flux_endpoint.engine.attempts import failure_text
from flux_endpoint.engine.instance_state import Fate
from flux_endpoint.engine.jobs.job import Ending, Job, failure_of
from flux_endpoint.engine.jobs.plan import FollowPlan
from flux_endpoint.engine.jobs.states import Wish
from flux_endpoint.engine.outcome import Cancelled, Failed, Finished, Lost, Refused
from flux_endpoint.engine.task import Failure, Value
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.states import ErrorCode


@dataclass(frozen=True)
class Left:
    """The task has no result here: it is left to others, with its failed attempts."""

    attempts: list[str]


@dataclass(frozen=True)
class Again:
    """The task gets another job, with its failed attempts."""

    attempts: list[str]


Verdict = Value | Failure | Left | Again


def verdict_on(
    job: Job, ending: Ending, *, retries: int, ends_jobs: bool, resources: object
) -> Verdict:
    """Return what becomes of the task of a job that has ended.

    Args:
        job: the job.
        ending: what was read about its end.
        retries: how often a task is retried after a failure of the system.
        ends_jobs: whether Flux is ending the jobs of the instance.
        resources: all resources of the instance, for a text.
    """
    by_flux = ending.fate is Fate.LEFT
    match ending.outcome:
        case Cancelled() if job.wish is not Wish.CANCEL and (
            job.wish is Wish.WITHDRAW or by_flux or ends_jobs
        ):
            return Left(job.attempts)
        case Finished() if by_flux:
            return Left(job.attempts)  # the time limit was the instance's
        case Lost(reason):
            attempts = [*job.attempts, reason]
            if len(attempts) <= retries:
                return Again(attempts)
            return Failure(ErrorCode.WORKER_LOST, failure_text("JobLost", attempts))
        case outcome:
            return _end_of(job, outcome, ending, resources)


def _end_of(
    job: Job, outcome: Finished | Cancelled | Refused | Failed, ending: Ending, resources: object
) -> Value | Failure:
    match outcome:
        case Finished():
            assert ending.end is not None
            return ending.end
        case Cancelled(note):
            text = f"TaskCancelled: {note or 'the job was cancelled'}"
            return Failure(ErrorCode.CANCELLED, text)
        case Refused(reason):
            if "unsatisfiable" in reason:
                reason = f"{reason} (in all, there are {resources})"
            return Failure(ErrorCode.ENGINE_REFUSED, reason)
        case Failed(reason):
            return Failure(ErrorCode.COULD_NOT_EXECUTE, failure_of(job.plan, reason))


def verdict_on_lost(job: Job, why: str, *, was_started: bool, retries: int) -> Verdict:
    """Return what becomes of the task of a job whose instance is lost.

    Args:
        job: the job.
        why: why the instance is lost.
        was_started: whether the job had started.
        retries: how often a task is retried after a failure of the system.
    """
    attempts = [*job.attempts, f"{why}, while the task's job ran"]
    if job.wish is Wish.CANCEL:
        return Failure(ErrorCode.CANCELLED, "TaskCancelled: ended on request")
    if isinstance(job.plan, FollowPlan):
        text = f"job {format_jobid(job.plan.jobid)} can't be followed any more: {why}"
        return Failure(ErrorCode.WORKER_LOST, f"JobLost: {text}")
    if not was_started:
        return Left(job.attempts)
    if len(attempts) <= retries:
        return Left(attempts)
    return Failure(ErrorCode.WORKER_LOST, failure_text("JobLost", attempts))
