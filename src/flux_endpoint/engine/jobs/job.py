"""A job that a task became: what is known of it, and how its ends are told apart."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flux_endpoint.engine.backend import JobFuture
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.demand import Demand
from flux_endpoint.engine.jobs.plan import CommandPlan, FollowPlan, JobPlan
from flux_endpoint.engine.outcome import (
    ENDED_BY_SIGTERM,
    TIMEOUT_EXPIRED,
    Cancelled,
    Finished,
    Outcome,
)
from flux_endpoint.engine.task import Failure, Value
from flux_endpoint.errors import EngineError
from flux_endpoint.protocol.jobid import format_jobid


@dataclass(eq=False)
class Job:
    """A job, or one to be, and what its runner knows of it."""

    task: EngineTask
    plan: JobPlan
    future: JobFuture
    #: Sizes of the output files when the job began.
    starts: tuple[int, int]
    jobid: int | None = None
    #: Whether it has its resources.
    allocated: bool = False
    cancelled: bool = False
    #: Whether its processes were started.
    started: bool = False
    #: Seconds since the epoch from which on it must not be started, and whether they have come.
    start_before: float = math.inf
    late: bool = False
    #: Why it is lost if it ends of the signal that all jobs were sent.
    ending: str = ""
    #: Whether it had ended, with an exception, before its processes did.
    failed: bool = False
    clean: bool = False
    #: Whether its end is being read, on another thread; nothing is done to it meanwhile.
    concluding: bool = False
    #: Whether it was found running, after a restart.
    attached: bool = False
    attempts: list[str] = field(default_factory=list)
    statuses: list[dict[str, Any]] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        """Whether it waits for resources, and should."""
        return not (self.allocated or self.late or self.cancelled or self.concluding)

    @property
    def runs(self) -> bool:
        """Whether it has resources, and has not ended as far as is known."""
        return self.allocated and not self.concluding

    @property
    def done(self) -> bool:
        """Whether its future is."""
        return self.future.done()


@dataclass(frozen=True)
class Ending:
    """What was found out of a job that has ended."""

    outcome: Outcome
    #: Of a job that came to an end of its own.
    end: Value | Failure | None = None
    #: Whether the instance ends with it: it has come to its time limit or its end, or `lose` comes.
    is_over: bool = False
    awaits_loss: bool = False


def demand_of(job: Job) -> Demand:
    """Return what a job asks for."""
    name = job.task.task_id
    if isinstance(job.plan, FollowPlan):
        return Demand(name)  # of somebody else's job we don't know what it asks for
    return Demand.of(name, job.plan.request.resources)


def was_ended(outcome: Outcome) -> bool:
    """Return whether a job's processes were ended from outside."""
    return isinstance(outcome, Cancelled) or (
        isinstance(outcome, Finished) and outcome.exception_name == TIMEOUT_EXPIRED
    )


def has_no_limit(job: Job, outcome: Outcome) -> bool:
    """Return whether a job's time was over although its task has no walltime."""
    if isinstance(job.plan, FollowPlan) or job.plan.request.resources.walltime:
        return False
    return isinstance(outcome, Finished) and outcome.exception_name == TIMEOUT_EXPIRED


def was_terminated(outcome: Outcome) -> bool:
    """Return whether a job may have ended of a SIGTERM."""
    return isinstance(outcome, Finished) and outcome.returncode in ENDED_BY_SIGTERM


def is_job_exception(error: BaseException | None) -> bool:
    """Return whether `error` is a job's own end, and none of the way to it."""
    return hasattr(error, "severity")


def not_followed(jobid: int, error: Exception) -> str:
    """Return why a job that somebody else started can't be followed."""
    name = format_jobid(jobid)
    if isinstance(error, PermissionError):
        return (
            f"can't follow job {name}: it is another user's, and only its owner, or the owner of "
            "the Flux instance, may"
        )
    return (
        f"can't follow job {name}: {error}. An endpoint follows the jobs of the Flux instance that "
        "it runs in: `flux jobs -a` there lists them"
    )


def prepare_output(plan: JobPlan) -> tuple[int, int]:
    """Make room for the output files, and return how many bytes they have already.

    Raises:
        EngineError: one of them can't be written; Flux's job shell would say so without its name.
    """
    if not isinstance(plan, CommandPlan):
        return 0, 0
    sizes = []
    given = (plan.request.stdout, plan.request.stderr)
    for name, path, target in zip(
        ("output", "error"), (plan.stdout, plan.stderr), given, strict=True
    ):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if target is not None and target != str(path):
                link = Path(target)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)  # of an earlier attempt
                link.symlink_to(path)
            sizes.append(_size_of_writable(path))
        except OSError as error:
            reason = error.strerror or str(error)
            raise EngineError(f"standard {name} can't be written to {path}: {reason}") from error
    return sizes[0], sizes[1]


def _size_of_writable(path: Path) -> int:
    """Return the size of a file that may be appended to, 0 where there is none yet."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path.stat().st_size if path.is_file() else 0


def failure_of(plan: JobPlan, reason: str) -> str:
    """Return why a job failed, with the files that the job shell could not open if it was that."""
    if "shell_init" not in reason or not isinstance(plan, CommandPlan):
        return reason
    return (
        f"{reason}. Can its node write to {plan.stdout} and {plan.stderr}, and are its shell "
        "options right?"
    )
