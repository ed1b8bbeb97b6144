"""Where jobs run: a Flux instance or this machine, behind one interface.

`executor` is a `flux.job.FluxExecutor`, or a `LocalExecutor`, which has the same interface; the
backend adds the few things that an engine needs and that FluxExecutor does not offer.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from flux_endpoint import logs
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import Amount, JobDemand, placement_in
from flux_endpoint.engine.flux_bindings import import_flux
from flux_endpoint.engine.flux_executor import FollowingExecutor
from flux_endpoint.engine.flux_futures import end_orphans, mend_executor
from flux_endpoint.engine.flux_jobs import JobList, MarkedJob, await_marked
from flux_endpoint.engine.flux_queue import FluxQueue, resource_list
from flux_endpoint.engine.flux_reads import Handles, JobReader, JobReport
from flux_endpoint.engine.instance_state import InstanceState
from flux_endpoint.engine.lifeline import ENDING, Lifeline, is_gone, quiet_executors
from flux_endpoint.engine.local import LocalExecutor
from flux_endpoint.errors import EngineError
from flux_endpoint.protocol.jobid import format_jobid

log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Seconds between FluxExecutor's looks at its queue of new jobs; its default of 0.1 alone makes
#: each lone job take 100 ms.
_POLL_INTERVAL = 0.01
#: Kills every process of ours with the variable $1 in its environment; twice, for what was forked
#: meanwhile.
_SWEEP = """for _ in 1 2; do
  grep -lzsxF -- "$1" /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do kill -9 "$pid"; done
done"""
_SWEEP_TIMEOUT = 30.0  # seconds
#: Seconds that Flux has to tell how it is: in a status report, and where tasks depend on it.
_ANSWER_TIMEOUT, _LONG_ANSWER_TIMEOUT = 1.0, 10.0
#: Seconds by which the time limits of an instance and of the jobs in it may be apart.
_SLACK = 1.0


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


class LocalBackend:
    """Jobs are process trees of this machine, below this process."""

    kind: Literal["flux", "local"] = "local"
    spans_hosts = False

    def __init__(self, config: FluxEngineConfig) -> None:
        cores = config.local_cores_per_node or os.cpu_count() or 1
        self.resources = Resources(
            nodes=config.local_nodes,
            cores=cores * config.local_nodes,
            gpus=config.local_gpus_per_node * config.local_nodes,
        )
        self._local = LocalExecutor(
            nodes=config.local_nodes,
            cores_per_node=cores,
            gpus_per_node=config.local_gpus_per_node,
            thread_name_prefix="jobs",
        )
        self.executor: JobExecutor = self._local
        self.instance = "local"
        self.description = (
            "embedded executor, no Flux instance here "
            f"({config.local_nodes} node(s), {cores} cores each)"
        )

    def watch(
        self,
        state: InstanceState,
        on_demand: Callable[[JobDemand], None] | None = None,
        ours: Mapping[str, str] | None = None,
    ) -> None:
        """See `Backend`; the executor is a part of this process, and all its jobs are ours."""

    def is_ending(self) -> bool:
        """See `Backend`."""
        return False

    def is_expired(self) -> bool:
        """See `Backend`; it has no time limit."""
        return False

    def is_lost(self, error: BaseException | None) -> bool:  # noqa: ARG002 - the interface's
        """See `Backend`."""
        return False

    def submit(self, jobspec: dict[str, Any], *, urgency: int = 16) -> JobFuture:
        """See `Backend`."""
        return self.executor.submit(json.dumps(jobspec), urgency=urgency)

    def cancel(self, jobid: int, note: str) -> None:
        """See `Backend`."""
        _tolerate(jobid, lambda: self._local.cancel_job(jobid, note))

    def kill(self, jobid: int, signum: int) -> None:
        """See `Backend`."""
        _tolerate(jobid, lambda: self._local.kill_job(jobid, signum))

    def exec_events(self, jobid: int) -> list[dict[str, Any]]:
        """See `Backend`."""
        try:
            return [_plain(event) for event in self._local.exec_events(jobid)]
        except OSError:  # there is no such job
            return []

    def sweep(self, jobid: int, variable: str) -> None:
        """See `Backend`; the executor leaves nothing."""

    def nodes(self) -> Mapping[str, Amount]:
        """See `Backend`."""
        have, count = self.resources, self.resources.nodes
        each = Amount(have.cores // count, have.gpus // count)
        return {f"rank {rank}": each for rank in range(count)}

    def report(self, jobid: int) -> JobReport:
        """See `Backend`."""
        return JobReport(f"job {format_jobid(jobid)}")

    def marked_jobs(
        self,
        mark: Mapping[str, str],  # noqa: ARG002 - the interface's
        *,
        name: str | None = None,  # noqa: ARG002
        since: float | None = None,  # noqa: ARG002
    ) -> list[MarkedJob]:
        """See `Backend`; no job outlives the process that submitted it."""
        return []

    def await_marked(
        self,
        mark: Mapping[str, str],  # noqa: ARG002 - the interface's
        patience: float,  # noqa: ARG002
    ) -> int | None:
        """See `Backend`; there is none, and none comes."""
        return None

    def usage(self) -> dict[str, Any]:
        """See `Backend`; the executor's own thread knows it alone."""
        return {}

    def close(self) -> None:
        """See `Backend`."""
        self.executor.shutdown(wait=True, cancel_futures=True)


class FluxBackend:
    """Jobs run in a Flux instance.

    Args:
        uri: of the instance; default: what `FLUX_URI` says, else the default instance.
    """

    kind: Literal["flux", "local"] = "flux"

    def __init__(self, uri: str | None = None) -> None:
        self._flux = import_flux()
        quiet_executors()
        mend_executor(self._flux)
        end_orphans()  # of executors that were not waited for
        self._uri = uri or os.environ.get("FLUX_URI") or None
        where = self._uri or "the default instance (FLUX_URI is not set)"
        self._handles = Handles(self._flux, self._uri)
        self._reader = JobReader(self._flux, self._handles)
        self._list = JobList(self._flux, self._handles)
        try:
            with self._handles.lend() as handle:
                listing = _answered(lambda: resource_list(handle).get()).all
                version = handle.attr_get("version")
        except OSError as error:
            raise EngineError(
                f"can't reach Flux at {where}: {error}. Start the endpoint inside an allocation, "
                "e.g. `flux alloc -N1` or `flux start`, or set engine.executor: local"
            ) from error
        self.resources = Resources(listing.nnodes, listing.ncores, listing.ngpus)
        self._everything = listing
        #: The instance's end in seconds since the epoch, as it was last heard of.
        self._expires = _expiration(listing)
        self.instance = self._uri or ""
        self.spans_hosts = listing.nnodes > 1
        executor = self._flux.job.FluxExecutor(
            poll_interval=_POLL_INTERVAL,
            thread_name_prefix="jobs",
            handle_args=(self._uri,),
        )
        self.executor: JobExecutor = FollowingExecutor(executor, is_gone)
        self.description = (
            f"Flux {version} instance at {where} ({listing.nnodes} node(s), {listing.ncores} cores)"
        )
        self._lifeline: Lifeline | None = None

    def watch(
        self,
        state: InstanceState,
        on_demand: Callable[[JobDemand], None] | None = None,
        ours: Mapping[str, str] | None = None,
    ) -> None:
        """See `Backend`."""
        follow = None if on_demand is None else FluxQueue(self._flux, ours, on_demand).start
        try:
            self._lifeline = Lifeline(self._flux, self._uri, state, follow)
        except OSError as error:
            where = self._uri or "the default URI"
            raise EngineError(f"the Flux instance at {where} is gone: {error}") from error

    def is_ending(self) -> bool:
        """See `Backend`."""
        if self.is_lost(None):
            return False
        try:
            with self._handles.lend() as handle:
                ask = partial(handle.rpc, "state-machine.get")
                answer = _answered(lambda: ask().wait_for(_LONG_ANSWER_TIMEOUT).get())
        except OSError as error:
            return self.is_lost(error)
        return answer["state"] in ENDING

    def is_expired(self) -> bool:
        """See `Backend`."""
        usage = self._usage(_LONG_ANSWER_TIMEOUT)
        self._expires = usage.get("expires", self._expires)  # it may have been changed
        return self._expires is not None and time.time() >= self._expires - _SLACK

    def is_lost(self, error: BaseException | None) -> bool:
        """See `Backend`."""
        return self._lifeline is not None and self._lifeline.explains(error)

    def instance_of(self, jobid: int) -> str:
        """Wait until the Flux instance that a job is runs; return its URI as seen from here.

        Raises:
            EngineError: the job has ended, or is no instance.
            OSError: the instance can't be reached.
        """
        watcher = self._flux.Flux(self._uri)  # for as long as that takes
        for event in self._flux.job.event_watch(watcher, jobid):
            if event.name == "memo" and "uri" in event.context:
                uri = local_uri(event.context["uri"])
                # Its broker answers all else only then.
                self._flux.Flux(uri).rpc("state-machine.wait", {}).get()
                return uri
            if event.name == "finish":
                break
        raise EngineError(f"no Flux instance came up in job {format_jobid(jobid)}")

    def submit(self, jobspec: dict[str, Any], *, urgency: int = 16) -> JobFuture:
        """See `Backend`."""
        return self.executor.submit(json.dumps(jobspec), urgency=urgency)

    def cancel(self, jobid: int, note: str) -> None:
        """See `Backend`."""
        raised = {"id": int(jobid), "type": "cancel", "severity": 0, "note": note}
        self._send(jobid, "job-manager.raise", raised)

    def kill(self, jobid: int, signum: int) -> None:
        """See `Backend`."""
        self._send(jobid, "job-manager.kill", {"id": int(jobid), "signum": int(signum)})

    def _send(self, jobid: int, topic: str, request: dict[str, Any]) -> None:
        """Send a request about a job, without waiting until Flux has dealt with it."""

        def send() -> None:
            with self._handles.lend() as handle:
                handle.rpc(topic, request, flags=self._flux.constants.FLUX_RPC_NORESPONSE)

        _tolerate(jobid, send)

    def exec_events(self, jobid: int) -> list[dict[str, Any]]:
        """See `Backend`."""
        return self._reader.exec_events(jobid)

    def sweep(self, jobid: int, variable: str) -> None:
        """See `Backend`. Flux ends a job's tasks; what has left their sessions, it can't find."""
        try:
            ranks = ",".join(self._reader.ranks(jobid))
        except (OSError, LookupError, ValueError) as error:
            logs.event(log, logging.WARNING, "unknown where a job ran", reason=str(error))
            return
        if not ranks:
            return
        command = ["flux", "exec", "-r", ranks, "sh", "-c", _SWEEP, "sh", variable]
        environment = {**os.environ, "FLUX_URI": self._uri} if self._uri else None
        try:
            subprocess.run(
                command,
                capture_output=True,
                timeout=_SWEEP_TIMEOUT,
                check=False,
                env=environment,
            )
        except (OSError, subprocess.SubprocessError) as error:
            logs.event(
                log, logging.WARNING, "could not look for a job's leftovers", reason=str(error)
            )

    def nodes(self) -> Mapping[str, Amount]:
        """See `Backend`."""
        return placement_in(json.loads(self._everything.encode()))

    def report(self, jobid: int) -> JobReport:
        """See `Backend`."""
        return self._reader.report(jobid)

    def marked_jobs(
        self, mark: Mapping[str, str], *, name: str | None = None, since: float | None = None
    ) -> list[MarkedJob]:
        """See `Backend`."""
        return _answered(lambda: self._list.find(mark, name=name, since=since))

    def await_marked(self, mark: Mapping[str, str], patience: float) -> int | None:
        """See `Backend`."""
        return _answered(
            lambda: await_marked(self._flux, self._flux.Flux(self._uri), mark, patience)
        )

    def usage(self) -> dict[str, Any]:
        """See `Backend`."""
        return self._usage(_ANSWER_TIMEOUT)

    def _usage(self, patience: float) -> dict[str, Any]:
        if self.is_lost(None):
            return {}
        try:
            with self._handles.lend() as handle:
                ask = partial(resource_list, handle)
                listing = _answered(lambda: ask().wait_for(patience).get())
        except OSError as error:
            logs.event(log, logging.WARNING, "Flux tells nothing of its resources", reason=error)
            return {}
        return {
            "nodes_down": listing.down.nnodes,
            "cores_allocated": listing.allocated.ncores,
            "cores_free": listing.free.ncores,
            "gpus_allocated": listing.allocated.ngpus,
            "gpus_free": listing.free.ngpus,
            "expires": _expiration(listing.all),
        }

    def close(self) -> None:
        """See `Backend`."""
        if self._lifeline is not None:
            self._lifeline.close()
        # Jobs that go on would be waited for; nothing that we started to follow them outlives us.
        self.executor.shutdown(wait=False, cancel_futures=True)


def _answered(call: Callable[[], _T]) -> _T:
    """Return what `call`, which waits for Flux, returns; not on the main thread.

    There Flux's bindings have SIGINT end the process while they wait, past its handlers, and
    forget to undo this when the answer is an error.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    with ThreadPoolExecutor(1, thread_name_prefix="flux-answer") as other:
        return other.submit(call).result()


def local_uri(uri: str) -> str:
    """Return the URI of an instance without the way over SSH if its first broker is on this host.

    `FLUX_URI_RESOLVE_LOCAL` in the environment says that it is, as for Flux's own commands.
    """
    parts = urlsplit(uri)
    here = parts.hostname == platform.node().lower() or os.environ.get("FLUX_URI_RESOLVE_LOCAL")
    return f"local://{parts.path}" if parts.scheme == "ssh" and here else uri


def _tolerate(jobid: int, action: Callable[[], object]) -> None:
    """Do something to a job that may end on its own at the same moment: that is not an error."""
    try:
        action()
    except OSError as error:
        logs.event(log, logging.DEBUG, "job has ended already", jobid=jobid, reason=str(error))


def _plain(event: JobEvent) -> dict[str, Any]:
    return {"name": event.name, "timestamp": event.timestamp, "context": dict(event.context)}


def _expiration(resources: Any) -> float | None:
    """Return when resources are taken back, in seconds since the epoch, as RFC 20 has it."""
    # ResourceSet has an attribute for it only from Flux 0.83 on.
    return json.loads(resources.encode())["execution"].get("expiration") or None


def choose_backend(config: FluxEngineConfig, uri: str | None = None) -> Backend:
    """Return the backend that `config.executor` asks for; "auto" is Flux where `FLUX_URI` is set.

    Args:
        config: options.
        uri: a Flux instance, to run jobs in this one whatever `config.executor` and `FLUX_URI` say.

    Raises:
        EngineError: Flux was asked for and can't be used.
    """
    auto = config.executor == "auto" and os.environ.get("FLUX_URI")
    if uri is not None or config.executor == "flux" or auto:
        return FluxBackend(uri)
    return LocalBackend(config)
