"""This machine as a backend: jobs are process trees below this process."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from flux_endpoint.engine.backend import (
    JobExecutor,
    JobFuture,
    Resources,
    tolerate_ended,
)
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import Amount, JobDemand
from flux_endpoint.engine.flux_jobs import MarkedJob
from flux_endpoint.engine.flux_reads import JobReport
from flux_endpoint.engine.instance_state import InstanceState
from flux_endpoint.engine.local import LocalExecutor
from flux_endpoint.engine.local.event_log import usage_in
from flux_endpoint.protocol.job_events import EventRecord
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.usage import Usage


class LocalBackend:
    """Runs jobs as process trees on this machine, below this process.

    Args:
        config: options of the engine, with the number of virtual nodes and their resources.
    """

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
        """See `Backend`; the executor is part of this process, and all its jobs are ours."""

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
        tolerate_ended(jobid, lambda: self._local.cancel_job(jobid, note))

    def kill(self, jobid: int, signum: int) -> None:
        """See `Backend`."""
        tolerate_ended(jobid, lambda: self._local.kill_job(jobid, signum))

    def set_urgency(self, jobid: int, urgency: int) -> None:
        """See `Backend`."""
        tolerate_ended(jobid, lambda: self._local.set_urgency(jobid, urgency))

    def exec_events(self, jobid: int) -> list[dict[str, Any]]:
        """See `Backend`."""
        return self._exec_events(jobid)

    def job_usage(self, jobid: int) -> Usage | None:
        """See `Backend`."""
        return usage_in(self._exec_events(jobid))

    def _exec_events(self, jobid: int) -> list[dict[str, Any]]:
        try:
            return [_plain(event) for event in self._local.exec_events(jobid)]
        except OSError:  # no such job
            return []

    def hostlist(self, nodes: Collection[str]) -> str:  # noqa: ARG002 - the interface's
        """See `Backend`; all virtual nodes are this host."""
        return socket.gethostname()

    def sweep(self, jobid: int, variable: str) -> None:
        """See `Backend`; the executor leaves no processes."""

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
        timeout: float,  # noqa: ARG002
    ) -> int | None:
        """See `Backend`; there is never such a job."""
        return None

    def usage(self) -> dict[str, Any]:
        """See `Backend`; only the executor's own thread knows it."""
        return {}

    def close(self) -> None:
        """See `Backend`."""
        self.executor.shutdown(wait=True, cancel_futures=True)


def _plain(event: EventRecord) -> dict[str, Any]:
    return {"name": event.name, "timestamp": event.timestamp, "context": dict(event.context)}
