"""The interface of `FluxBackend` and `LocalBackend`, which run jobs.

`executor` is a `flux.job.FluxExecutor`, or a `LocalExecutor` with the same interface. The
backend adds the few operations that an engine needs and that FluxExecutor does not offer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from flux_endpoint import logs
from flux_endpoint.engine.demand import Amount, JobDemand
from flux_endpoint.engine.flux_jobs import MarkedJob
from flux_endpoint.engine.flux_reads import JobReport
from flux_endpoint.engine.instance_state import InstanceState
from flux_endpoint.usage import Usage

log = logging.getLogger(__name__)


class JobFuture(Protocol):
    """The future that `submit` and `attach` return: see `flux.job.executor.FluxExecutorFuture`."""

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
    """The total resources of an instance: nodes, cores and gpus."""

    nodes: int
    cores: int
    gpus: int

    def __str__(self) -> str:
        counts = ((self.nodes, "node"), (self.cores, "core"), (self.gpus, "gpu"))
        nodes, cores, gpus = (f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts)
        return f"{nodes} with {cores} and {gpus}"

    @property
    def cores_per_node(self) -> int:
        """Average cores of a node, rounded down, at least 1; nodes may differ."""
        return max(1, self.cores // max(1, self.nodes))


class Backend(Protocol):
    """A job executor and the further operations of an instance that an engine uses."""

    kind: Literal["flux", "local"]
    #: One line for people: which instance, and its size.
    description: str
    executor: JobExecutor
    #: Identifies the instance, so that a job is found again after a restart.
    instance: str
    resources: Resources
    #: Whether jobs may run on hosts other than this process's.
    spans_hosts: bool

    def watch(
        self,
        state: InstanceState,
        on_demand: Callable[[JobDemand], None] | None = None,
        ours: Mapping[str, str] | None = None,
    ) -> None:
        """Report to `state` when the instance begins to end and when it is gone.

        Args:
            state: the state of this instance.
            on_demand: called with the waiting jobs' requests and the allocated resources, on each
                change; never called where Flux reports only our own jobs.
            ours: mark of the jobs to leave out of that.

        Raises:
            EngineError: the instance is gone already.
        """

    def is_ending(self) -> bool:
        """Ask the instance whether it is ending; it starts no more jobs then."""

    def is_expired(self) -> bool:
        """Return whether the instance has reached its time limit; no job may outlast it."""

    def is_lost(self, error: BaseException | None) -> bool:
        """Return whether `error` was caused by the end of the instance; records it in the state."""

    def submit(self, jobspec: dict[str, Any], *, urgency: int = 16) -> JobFuture:
        """Submit a jobspec (plain data) and return the job's future."""

    def cancel(self, jobid: int, note: str) -> None:
        """Cancel a job; does nothing if it has ended."""

    def kill(self, jobid: int, signum: int) -> None:
        """Send a signal to the tasks of a running job."""

    def set_urgency(self, jobid: int, urgency: int) -> None:
        """Set the urgency of a job that waits; one that has its resources is left as it is."""

    def exec_events(self, jobid: int) -> list[dict[str, Any]]:
        """Return the `guest.exec.eventlog` of a finished job, or the part of it that exists."""

    def job_usage(self, jobid: int) -> Usage | None:
        """Return what the processes of a finished job have used; `None`: it is not known."""

    def hostlist(self, nodes: Collection[str]) -> str:
        """Return the hosts of nodes, named as in job placements, as a host list (RFC 29)."""

    def sweep(self, jobid: int, variable: str) -> None:
        """Kill the processes that a cancelled job has left on its nodes.

        Args:
            jobid: the job.
            variable: `NAME=value` in the environment of all of its processes.
        """

    def nodes(self) -> Mapping[str, Amount]:
        """Return the resources of each node, by the node names used in job placements."""

    def report(self, jobid: int) -> JobReport:
        """Return the command and the output of a finished job, whoever submitted it."""

    def marked_jobs(
        self, mark: Mapping[str, str], *, name: str | None = None, since: float | None = None
    ) -> list[MarkedJob]:
        """Return this user's jobs whose mark includes `mark`, the latest first; see `JobList.find`.

        Raises:
            OSError: Flux does not answer.
        """

    def await_marked(self, mark: Mapping[str, str], timeout: float) -> int | None:
        """Wait until an active job has a mark that includes `mark`; return its id.

        Args:
            mark: entries that the job's mark must have.
            timeout: the longest time to wait, in seconds; then `None` is returned.

        Raises:
            OSError: Flux does not answer.
        """

    def usage(self) -> dict[str, Any]:
        """Return the current use of the resources by all users; empty if it is unknown.

        Returns:
            `nodes_down`, `cores_allocated`, `cores_free`, `gpus_allocated`, `gpus_free`, and
            `expires`: the end of the instance in seconds since the epoch, or `None`.
        """

    def close(self) -> None:
        """Release the executor; all jobs should have ended."""


def tolerate_ended(jobid: int, action: Callable[[], object]) -> None:
    """Run `action` on a job; ignore the error if the job has ended in the meantime."""
    try:
        action()
    except OSError as error:
        logs.event(log, logging.DEBUG, "job has ended already", jobid=jobid, reason=str(error))
