"""A Flux instance as a backend."""

from __future__ import annotations

import importlib
import json
import logging
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from flux_endpoint import logs
from flux_endpoint.engine.backend import JobExecutor, JobFuture, Resources, tolerate_ended
from flux_endpoint.engine.demand import Amount, JobDemand, placement_in
from flux_endpoint.engine.flux_bindings import (
    flux_python_release,
    import_flux,
    mismatch,
    unusable,
)
from flux_endpoint.engine.flux_executor import FollowingExecutor
from flux_endpoint.engine.flux_futures import end_orphans, mend_executor
from flux_endpoint.engine.flux_jobs import JobList, MarkedJob, await_marked
from flux_endpoint.engine.flux_journal import JournalExecutor
from flux_endpoint.engine.flux_queue import FluxQueue, resource_list
from flux_endpoint.engine.flux_reads import Handles, JobReader, JobReport
from flux_endpoint.engine.instance_state import InstanceState
from flux_endpoint.engine.lifeline import ENDING, Lifeline, is_gone, quiet_executors
from flux_endpoint.errors import EngineError
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.usage import Usage

log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Kills all of the user's processes with the variable $1 in their environment; the second pass is
#: for processes forked during the first.
_SWEEP = """for _ in 1 2; do
  grep -lzsxF -- "$1" /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do kill -9 "$pid"; done
done"""
_SWEEP_TIMEOUT = 30.0  # seconds
#: Timeouts (s) for asking Flux for its state: for a status report, and where tasks depend on it.
_ANSWER_TIMEOUT, _LONG_ANSWER_TIMEOUT = 1.0, 10.0
#: Seconds by which the time limits of an instance and of its jobs may differ.
_SLACK = 1.0


class FluxBackend:
    """Runs jobs in a Flux instance.

    Args:
        uri: the instance's; default: `FLUX_URI`, else the default instance.
    """

    kind: Literal["flux", "local"] = "flux"

    def __init__(self, uri: str | None = None) -> None:
        self._flux = import_flux()
        quiet_executors()
        mend_executor(self._flux)
        end_orphans()  # of executors that were not shut down with `wait`
        self._uri = uri or os.environ.get("FLUX_URI") or None
        where = self._uri or "the default instance (FLUX_URI is not set)"
        self._handles = Handles(self._flux, self._uri)
        self._reader = JobReader(self._flux, self._handles)
        self._list = JobList(self._flux, self._handles)
        try:
            with self._handles.lend() as handle:
                version = handle.attr_get("version")
                if differs := mismatch(flux_python_release(self._flux), version):
                    log.warning("%s: %s", *differs)
                listing = _answered(lambda: resource_list(handle).get()).all
        except ImportError as error:
            raise unusable(error) from error
        except OSError as error:
            raise EngineError(
                f"can't reach Flux at {where}: {error}. Start the endpoint inside an allocation, "
                "e.g. `flux alloc -N1` or `flux start`, or set engine.executor: local"
            ) from error
        self.resources = Resources(listing.nnodes, listing.ncores, listing.ngpus)
        self._everything = listing
        #: Position and host of each node, by name.
        self._hosts = {
            f"rank {rank}": (position, str(host))
            for position, (rank, host) in enumerate(
                zip(listing.ranks, listing.nodelist, strict=False)
            )
        }
        #: The last known end of the instance, in seconds since the epoch.
        self._expires = _expiration(listing)
        self.instance = self._uri or ""
        self.spans_hosts = listing.nnodes > 1
        executor = JournalExecutor(self._flux, self._uri)
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
        self._expires = usage.get("expires", self._expires)  # the limit may have been changed
        return self._expires is not None and time.time() >= self._expires - _SLACK

    def is_lost(self, error: BaseException | None) -> bool:
        """See `Backend`."""
        return self._lifeline is not None and self._lifeline.explains(error)

    def instance_of(self, jobid: int) -> str:
        """Wait until the Flux instance in a job is up; return its URI as seen from here.

        Raises:
            EngineError: the job has ended, or is not an instance.
            OSError: the enclosing instance can't be reached.
        """
        watcher = self._flux.Flux(self._uri)  # its own connection, since this may take long
        for event in self._flux.job.event_watch(watcher, jobid):
            if event.name == "memo" and "uri" in event.context:
                uri = local_uri(event.context["uri"])
                # Other requests to its broker are answered only from then on.
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

    def set_urgency(self, jobid: int, urgency: int) -> None:
        """See `Backend`; in another user's instance Flux permits at most its default, 16."""
        self._send(jobid, "job-manager.urgency", {"id": int(jobid), "urgency": urgency})

    def _send(self, jobid: int, topic: str, request: dict[str, Any]) -> None:
        """Send a request about a job, without waiting for the answer."""

        def send() -> None:
            with self._handles.lend() as handle:
                handle.rpc(topic, request, flags=self._flux.constants.FLUX_RPC_NORESPONSE)

        tolerate_ended(jobid, send)

    def exec_events(self, jobid: int) -> list[dict[str, Any]]:
        """See `Backend`."""
        return self._reader.exec_events(jobid)

    def job_usage(self, jobid: int) -> Usage | None:  # noqa: ARG002 - the interface's
        """See `Backend`; Flux does not measure it."""
        return None

    def hostlist(self, nodes: Collection[str]) -> str:
        """See `Backend`."""
        module = importlib.import_module("flux.hostlist")
        hosts = [host for _, host in sorted(self._hosts[n] for n in nodes if n in self._hosts)]
        return str(module.Hostlist(hosts).uniq().encode())

    def sweep(self, jobid: int, variable: str) -> None:
        """See `Backend`. Flux ends a job's tasks, but misses processes that left its sessions."""
        try:
            ranks = ",".join(self._reader.ranks(jobid))
        except (OSError, LookupError, ValueError) as error:
            logs.event(log, logging.WARNING, "can't tell where a job ran", reason=str(error))
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
            logs.event(log, logging.WARNING, "could not clean up after a job", reason=str(error))

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

    def await_marked(self, mark: Mapping[str, str], timeout: float) -> int | None:
        """See `Backend`."""
        return _answered(
            lambda: await_marked(self._flux, self._flux.Flux(self._uri), mark, timeout)
        )

    def usage(self) -> dict[str, Any]:
        """See `Backend`."""
        return self._usage(_ANSWER_TIMEOUT)

    def _usage(self, timeout: float) -> dict[str, Any]:
        if self.is_lost(None):
            return {}
        try:
            with self._handles.lend() as handle:
                ask = partial(resource_list, handle)
                listing = _answered(lambda: ask().wait_for(timeout).get())
        except OSError as error:
            logs.event(log, logging.WARNING, "Flux does not report its resources", reason=error)
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
        # Do not wait for jobs that go on; the threads that follow them end all the same.
        self.executor.shutdown(wait=False, cancel_futures=True)


def _answered(call: Callable[[], _T]) -> _T:
    """Return the result of `call`, which waits for Flux; run it off the main thread.

    On the main thread, Flux's bindings let SIGINT end the process while they wait, bypassing its
    handlers, and do not restore these when the answer is an error.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    with ThreadPoolExecutor(1, thread_name_prefix="flux-answer") as other:
        return other.submit(call).result()


def local_uri(uri: str) -> str:
    """Return the URI of an instance without its SSH part if its first broker is on this host.

    `FLUX_URI_RESOLVE_LOCAL` in the environment says so, as for Flux's own commands.
    """
    parts = urlsplit(uri)
    here = parts.hostname == platform.node().lower() or os.environ.get("FLUX_URI_RESOLVE_LOCAL")
    return f"local://{parts.path}" if parts.scheme == "ssh" and here else uri


def _expiration(resources: Any) -> float | None:
    """Return the expiration of a resource set (RFC 20), in seconds since the epoch."""
    # ResourceSet has an attribute for it only since Flux 0.83.
    return json.loads(resources.encode())["execution"].get("expiration") or None
