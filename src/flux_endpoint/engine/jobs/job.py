"""A task's job and its known state, and checks that classify how it ended."""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from flux_endpoint.engine.backend import JobFuture
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.engine.demand import Demand, JobDemand
from flux_endpoint.engine.held.tasks import HeldTask, JobControl
from flux_endpoint.engine.instance_state import Fate
from flux_endpoint.engine.jobs.plan import CommandPlan, FollowPlan, JobPlan, RanksPlan
from flux_endpoint.engine.jobs.states import (
    HAS_RESOURCES,
    JOB_STATES,
    PROGRESS,
    JobChange,
    JobState,
    Wish,
)
from flux_endpoint.engine.outcome import (
    ENDED_BY_SIGTERM,
    TIMEOUT_EXPIRED,
    Cancelled,
    Finished,
    Outcome,
)
from flux_endpoint.engine.task import Failure, Value
from flux_endpoint.engine.written_output import WrittenOutput
from flux_endpoint.errors import EngineError
from flux_endpoint.paths import write_private
from flux_endpoint.protocol.envelope import ATTEMPTS, JOBID, NODE
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.run_options import RunOptions

#: Longest host list in a result's details, in characters.
_LONGEST_HOSTS = 1000


@dataclass(eq=False)
class Job:
    """A job, submitted or not, and its runner's knowledge of it."""

    task: EngineTask
    plan: JobPlan
    future: JobFuture
    #: Its output files; unused if it is only followed.
    output: WrittenOutput
    control: JobControl
    state: JobState = JobState.WAITING
    jobid: int | None = None
    #: The state it had reached when it ended.
    reached: JobState = JobState.WAITING
    wish: Wish = Wish.NONE
    #: The reason for which it is lost if the SIGTERM that it was sent ends it.
    terminated: str = ""
    #: It must not start at or after this time, in seconds since the epoch.
    start_before: float = math.inf
    attempts: list[str] = field(default_factory=list)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    #: Its nodes as a host list, once they are known.
    hosts: str = ""
    #: What was read after its end: see `Ending.details`.
    measured: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reached = self.state

    def advance(self, event: JobChange) -> bool:
        """Apply `event`; return whether the state has changed."""
        before, self.state = self.state, JOB_STATES.after(self.state, event)
        if self.state in PROGRESS:
            self.reached = self.state
        return self.state is not before

    def want(self, wish: Wish) -> None:
        """Record what we want of it."""
        self.wish = max(self.wish, wish)

    def withdraw(self, note: str) -> None:
        """Cancel it; if it is being submitted, it must be withdrawn again once it has an id."""
        if self.jobid is not None:
            self.control.cancel(self.jobid, note)
        else:
            self.future.cancel()

    def withdraw_if_late(self) -> float:
        """Withdraw it if it waits although its latest start has passed.

        Returns:
            The seconds until then; infinity if it does not wait, or has no latest start.
        """
        left = self.start_before - time.time() if self.waits else math.inf
        if left <= 0:
            self.want(Wish.WITHDRAW)
            self.withdraw("it could not start in time")
        return left

    def cancel(self, note: str) -> None:
        """Cancel it, now or once it has an id, which nobody else will see."""
        if self.jobid is not None:
            self.control.cancel(self.jobid, note)
        elif not self.future.cancel():
            self.future.add_jobid_callback(partial(self._cancel_late, note))

    def terminate(self, reason: str) -> None:
        """Send SIGTERM to its processes if it runs; a job that this ends is lost for `reason`."""
        runs = self.state in (JobState.ALLOCATED, JobState.RUNNING)
        if runs and self.jobid is not None and not self.is_followed:
            self.terminated = reason
            self.control.kill(self.jobid, signal.SIGTERM)

    def _cancel_late(self, note: str, future: JobFuture) -> None:
        """Cancel it now that it has an id. Runs on the executor's thread."""
        with suppress(RuntimeError, CancelledError):  # it was never submitted
            self.control.cancel(future.jobid(timeout=0), note)

    def set_urgency(self, urgency: int) -> None:
        """Set its task's urgency, and its own while it waits."""
        self.task = replace(self.task, urgency=urgency)
        if not self.has_resources and (self.jobid is not None or self.is_held):
            self.control.set_urgency(self.jobid or 0, urgency)

    def identified(self) -> None:
        """Set the urgency that its task has got before the job had an id."""
        plan, urgency = self.plan, self.task.urgency
        is_set = not isinstance(plan, FollowPlan) and urgency == plan.request.resources.urgency
        if urgency is not None and (self.state is JobState.FOUND or not is_set):
            self.set_urgency(urgency)

    @property
    def waits(self) -> bool:
        """Whether it waits for resources and should get them."""
        return self.state in (JobState.WAITING, JobState.FOUND) and self.wish < Wish.WITHDRAW

    @property
    def has_resources(self) -> bool:
        """Whether it has, or had, its resources, as far as is known."""
        return self.reached in HAS_RESOURCES

    @property
    def has_ended(self) -> bool:
        """Whether this job no longer has its task."""
        return JOB_STATES.is_final(self.state)

    @property
    def is_held(self) -> bool:
        """Whether its job holds an allocation for several tasks."""
        return isinstance(self.control, HeldTask)

    @property
    def is_followed(self) -> bool:
        """Whether somebody else submitted it and it is only followed."""
        return isinstance(self.plan, FollowPlan)

    @property
    def demand(self) -> Demand:
        """The resources that it requests."""
        if isinstance(self.plan, FollowPlan):
            return Demand(self.task.task_id)  # the request of somebody else's job is unknown
        return Demand.of(self.task.task_id, self.plan.request.resources)

    def details(self) -> dict[str, Any]:
        """Return what is known of its run, as entries of the result's details."""
        details = dict(self.measured)
        if self.jobid is not None:
            # The job's events travel separately from its result, and may arrive later.
            details[JOBID] = str(self.jobid)
        if self.hosts:
            is_short = len(self.hosts) <= _LONGEST_HOSTS
            details[NODE] = self.hosts if is_short else f"{self.hosts[: _LONGEST_HOSTS - 1]}…"
        if self.attempts:
            details[ATTEMPTS] = len(self.attempts) + 1
        return details


@dataclass(frozen=True)
class Ending:
    """The results of reading the end of a job."""

    outcome: Outcome
    #: Set if the job ended by itself.
    end: Value | Failure | None = None
    fate: Fate = Fate.OWN_END
    #: What its processes have used and printed, as far as it is known and not in its result, as
    #: entries of the result's details.
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunnerStop:
    """Options of a runner's stop: whether jobs go on, and how long pending work may take."""

    keep: bool
    until: float


@dataclass(frozen=True)
class JobListener:
    """Callbacks for what becomes of tasks, called on the runner's thread.

    Attributes:
        on_result: called with the end of each task.
        on_left: called with the id of each task that is left to others, and its failed attempts.
        on_event: called with every event of every job.
        on_demand: called with the jobs' resources and requests whenever these change.
    """

    on_result: Callable[[EngineResult], None]
    on_left: Callable[[str, list[str]], None] = lambda _task_id, _attempts: None
    on_event: Callable[[EngineEvent], None] = lambda _: None
    on_demand: Callable[[JobDemand], None] = lambda _: None


def was_ended(outcome: Outcome) -> bool:
    """Return whether a job's processes were ended from outside."""
    return isinstance(outcome, Cancelled) or (
        isinstance(outcome, Finished) and outcome.exception_name == TIMEOUT_EXPIRED
    )


def has_no_limit(job: Job, outcome: Outcome) -> bool:
    """Return whether a job reached a time limit although its task has no walltime."""
    if isinstance(job.plan, FollowPlan) or job.plan.request.resources.walltime:
        return False
    return isinstance(outcome, Finished) and outcome.exception_name == TIMEOUT_EXPIRED


def was_terminated(outcome: Outcome) -> bool:
    """Return whether a SIGTERM may have ended the job."""
    return isinstance(outcome, Finished) and outcome.returncode in ENDED_BY_SIGTERM


def is_job_exception(error: BaseException | None) -> bool:
    """Return whether `error` is the job's own end, and not a failure to follow it."""
    return hasattr(error, "severity")


def not_followed(jobid: int, error: Exception) -> str:
    """Return why a job that somebody else submitted can't be followed."""
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


def output_of(
    plan: JobPlan, starts: tuple[int, int] = (0, 0), *, is_found: bool = False
) -> WrittenOutput:
    """Return the output files of a job.

    Args:
        plan: the job's plan.
        starts: their sizes before the job, in bytes.
        is_found: whether the job was submitted before a restart.
    """
    if isinstance(plan, FollowPlan):  # Flux knows where somebody else's job writes
        return WrittenOutput((Path(os.devnull), Path(os.devnull)))
    paths = (plan.stdout, plan.stderr)
    return WrittenOutput(paths, starts, was_followed=is_found, is_open=is_found)


def prepare_process(task: EngineTask, plan: CommandPlan | RanksPlan) -> None:
    """Create the working directory, and the file of a text that is the standard input.

    Flux's job shell would run the job in another directory if there is none.

    Raises:
        EngineError: a directory that the task names is not there, or its input can't be read.
    """
    options = task.options or RunOptions()
    cwd, stdin = Path(plan.request.cwd), plan.request.stdin
    if not Path(options.cwd).is_absolute():
        cwd.mkdir(parents=True, exist_ok=True)
    elif not cwd.is_dir():
        raise EngineError(
            f"cwd {options.cwd!r} is no directory on {os.uname().nodename}: the endpoint's host "
            "and the nodes of a job must have it"
        )
    if isinstance(options.stdin, str) and stdin is not None:
        Path(stdin).parent.mkdir(parents=True, exist_ok=True)
        write_private(Path(stdin), options.stdin, durable=False)
    elif stdin is not None and not (Path(stdin).is_file() and os.access(stdin, os.R_OK)):
        raise EngineError(
            f"stdin {stdin!r} is no file that can be read on {os.uname().nodename}: the endpoint's "
            "host and the nodes of a job must have it"
        )


def prepare_output(plan: JobPlan) -> tuple[int, int]:
    """Create the output files, and return the sizes that they have already, in bytes.

    Raises:
        EngineError: one can't be written; Flux's job shell would report that without its name.
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
                link.unlink(missing_ok=True)  # from an earlier attempt
                link.symlink_to(path)
            sizes.append(_size_of_writable(path))
        except OSError as error:
            reason = error.strerror or str(error)
            raise EngineError(f"standard {name} can't be written to {path}: {reason}") from error
    return sizes[0], sizes[1]


def _size_of_writable(path: Path) -> int:
    """Return the size of a file that can be appended to; 0 if it does not exist yet."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path.stat().st_size if path.is_file() else 0


def failure_of(plan: JobPlan, reason: str) -> str:
    """Return why a job failed; names the output files if the job shell could not open them."""
    if "shell_init" not in reason or not isinstance(plan, CommandPlan):
        return reason
    return (
        f"{reason}. Can its node write to {plan.stdout} and {plan.stderr}, and are its shell "
        "options right?"
    )
