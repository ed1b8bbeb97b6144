"""Where jobs run: the interface of `FluxBackend` and of `LocalBackend`, which is this machine.

`executor` is a `flux.job.FluxExecutor`, or a `LocalExecutor`, which has the same interface; the
backend adds the few things that an engine needs and that FluxExecutor does not offer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from flux_endpoint import logs
from flux_endpoint.engine.demand import Amount, JobDemand
from flux_endpoint.engine.flux_jobs import MarkedJob
from flux_endpoint.engine.flux_reads import JobReport
from flux_endpoint.engine.instance_state import InstanceState

log = logging.getLogger(__name__)


class JobEvent(Protocol):
    """An event of a job's main eventlog (RFC 21)."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def timestamp(self) -> float: ...  # noqa: D102
    @property
    def context(self) -> dict[str, Any]: ...  # noqa: D102


class JobFuture(Protocol):
    """What `submit` and `attach` return: see `flux.job.executor.FluxExecutorFuture`."""

    def jobid(self, timeout: float | None = None) -> int: ...  # noqa: D102
    def add_jobid_callback(self, callback: Callable[[Any], object]) -> Any: ...  # noqa: D102
    def add_event_callback(self, event: str, callback: Callable[[Any, Any], object]) -> Any: ...  # noqa: D102
    def add_done_callback(self, fn: Callable[[Any], object]) -> Any: ...  # noqa: D102
    def done(self) -> bool: ...  # noqa: D102
    def cancel(self) -> bool: ...  # noqa: D102
    def cancelled(self) -> bool: ...  # noqa: D102
    def result(self, timeout: float | None = None) -> int: ...  # noqa: D102
    def exception(self, timeout: float | None = None) -> BaseException | None: ...  # noqa: D102


class JobExecutor(Protocol):
    """The interface of `flux.job.executor.FluxExecutor`."""

    def submit(self, *args: Any, **kwargs: Any) -> JobFuture: ...  # noqa: D102
    def attach(self, jobid: int) -> JobFuture: ...  # noqa: D102
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Resources:
    """What there is to allocate, in all."""

    nodes: int
    cores: int
    gpus: int

    def __str__(self) -> str:
        counts = ((self.nodes, "node"), (self.cores, "core"), (self.gpus, "gpu"))
        nodes, cores, gpus = (f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts)
        return f"{nodes} with {cores} and {gpus}"

    @property
    def cores_per_node(self) -> int:
        """Cores of a node; the least that every node has where they differ is unknown here."""
        return max(1, self.cores // max(1, self.nodes))


class Backend(Protocol):
    """A job executor and what belongs to it."""

    kind: Literal["flux", "local"]
    #: One line for a person: which instance, how large.
    description: str
    executor: JobExecutor
    #: Identity of the instance, for finding a job again after a restart.
    instance: str
    resources: Resources
    #: Whether jobs may run on another host than this process.
    spans_hosts: bool

    def watch(
        self,
        state: InstanceState,
        on_demand: Callable[[JobDemand], None] | None = None,
        ours: Mapping[str, str] | None = None,
    ) -> None:
        """Have `state` know when the instance begins to end, and when it is gone.

        Args:
            state: of this instance.
            on_demand: called with what all jobs of the instance wait for and have, whenever that
                changes; never where Flux tells of our own jobs alone.
            ours: the mark of the jobs that are left out of it.

        Raises:
            EngineError: it is gone already.
        """

    def is_ending(self) -> bool:
        """Ask the instance whether it is about to end; it starts nothing more then."""

    def is_expired(self) -> bool:
        """Return whether the instance's time limit has come; Flux gives its jobs none beyond it."""

    def is_lost(self, error: BaseException | None) -> bool:
        """Return whether `error` comes of the instance's end, whose state says so then."""

    def submit(self, jobspec: dict[str, Any], *, urgency: int = 16) -> JobFuture:
        """Submit a jobspec given as plain data."""

    def cancel(self, jobid: int, note: str) -> None:
        """Cancel a job; one that has ended already is left alone."""

    def kill(self, jobid: int, signum: int) -> None:
        """Send a signal to a running job's tasks."""

    def exec_events(self, jobid: int) -> list[dict[str, Any]]:
        """Return a finished job's `guest.exec.eventlog`, as far as there is one."""

    def sweep(self, jobid: int, variable: str) -> None:
        """Kill what a job that was ended has left on its nodes.

        Args:
            jobid: the job.
            variable: `NAME=value`, which all of its processes have in their environment.
        """

    def nodes(self) -> Mapping[str, Amount]:
        """Return what each node has, by the names that jobs' placements have."""

    def report(self, jobid: int) -> JobReport:
        """Return what a finished job was and what it wrote, whoever started it."""

    def marked_jobs(
        self, mark: Mapping[str, str], *, name: str | None = None, since: float | None = None
    ) -> list[MarkedJob]:
        """Return this user's jobs with all of `mark`, the latest first; see `JobList.find`.

        Raises:
            OSError: Flux does not answer.
        """

    def await_marked(self, mark: Mapping[str, str], patience: float) -> int | None:
        """Wait until a job with all of `mark` is there that has not ended; return its id.

        Args:
            mark: what it bears.
            patience: seconds to wait at most; `None` is returned then.

        Raises:
            OSError: Flux does not answer.
        """

    def usage(self) -> dict[str, Any]:
        """Return how the resources are used now, whoever uses them; empty if that isn't known.

        Returns:
            `nodes_down`, `cores_allocated`, `cores_free`, `gpus_allocated`, `gpus_free`, and
            `expires`, the end of the instance in seconds since the epoch, or `None`.
        """

    def close(self) -> None:
        """Let go of the executor; jobs should have ended."""


def tolerate_ended(jobid: int, action: Callable[[], object]) -> None:
    """Do something to a job that may end on its own at the same moment: that is not an error."""
    try:
        action()
    except OSError as error:
        logs.event(log, logging.DEBUG, "job has ended already", jobid=jobid, reason=str(error))
