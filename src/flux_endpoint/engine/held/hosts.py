"""The jobs that hold allocations: how they are submitted, and what is known of each."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend, JobFuture
from flux_endpoint.engine.held.host_socket import HostSocket
from flux_endpoint.engine.held.policy import URGENCY, TaskShape
from flux_endpoint.engine.held.settings import VARIABLE, HostSettings
from flux_endpoint.engine.held.states import HOST_STATES, HostChange, HostState
from flux_endpoint.engine.held.tasks import HeldTask
from flux_endpoint.engine.job_setup import JobSetup
from flux_endpoint.engine.jobspec import JobRequest, build_jobspec
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.protocol.resources import ResourceSpecification

log = logging.getLogger(__name__)

JOB_NAME = "flux-endpoint-mpi"
#: Seconds in which a host must reach its agent, once it has its allocation and once it runs.
START_TIMEOUT = 10.0


@dataclass(eq=False)
class HostRecord:
    """A job that holds an allocation.

    Attributes:
        host_id: its id.
        shape: the allocation; `None`: it was found after a restart, and ends after its task.
        future: its job.
        state: see `states.py`.
        jobid: the job's id, once it has one.
        alloc: context of the job's `alloc` event.
        task: the task that it has.
        end_note: why its task was asked to end, if it was.
        since: monotonic time of the last change of its state, of its `alloc` event while it
            starts, or of its task's end.
        ready_at: monotonic time of its greeting.
    """

    host_id: str
    shape: TaskShape | None
    future: JobFuture
    state: HostState = HostState.STARTING
    jobid: int | None = None
    alloc: Mapping[str, Any] = field(default_factory=dict)
    task: HeldTask | None = None
    end_note: str | None = None
    since: float = field(default_factory=time.monotonic)
    ready_at: float = math.inf

    def change(self, change: HostChange) -> bool:
        """Apply an event; return whether the state has changed."""
        before, self.state = self.state, HOST_STATES.after(self.state, change)
        if self.state is not before:
            self.since = time.monotonic()
        return self.state is not before

    def allocated(self, context: Mapping[str, Any]) -> None:
        """Record its job's `alloc` event."""
        self.alloc = dict(context) or {"annotations": {}}
        if self.state is HostState.STARTING:
            self.since = time.monotonic()

    def is_overdue(self, now: float) -> bool:
        """Return whether it has its allocation for so long that it should have greeted."""
        is_starting = self.state is HostState.STARTING and bool(self.alloc)
        return is_starting and now >= self.since + START_TIMEOUT

    def free(self) -> None:
        """Record the end of its task."""
        self.task = self.end_note = None
        self.since = time.monotonic()
        self.change(HostChange.TASK_ENDED)


class HostLauncher:
    """Submits hosts, and keeps their files. Used by the runner's thread only.

    Args:
        backend: where the jobs run.
        tasks: how tasks run here.
        setup: Python and variables of workers and jobs.
        directory: directory of the hosts' files.
        address: address of this host for the nodes; default: determined automatically.
        on_message: called, on another thread, with host, kind and parts of each message.
    """

    def __init__(
        self,
        backend: Backend,
        tasks: TaskSettings,
        setup: JobSetup,
        directory: Path,
        *,
        address: str | None,
        on_message: Callable[[str, bytes, list[bytes]], None],
    ) -> None:
        self._backend = backend
        self._mark = tasks.mark("allocation")
        self._setup = setup
        self._directory = directory
        self._address = address
        self._on_message = on_message
        self._socket: HostSocket | None = None

    def clean_up(self) -> None:
        """End the hosts of an earlier agent that have no allocation yet; forget the others' logs.

        A host that runs a task ends after it.
        """
        if not self._directory.is_dir():
            return  # there never was a host
        try:
            active = {
                str(job.mark.get("host")): job
                for job in self._backend.marked_jobs(self._mark, name=JOB_NAME)
            }
        except OSError as error:
            logs.event(log, logging.WARNING, "can't list held allocations", reason=error)
            return
        for job in active.values():
            if not job.has_begun:
                self._backend.cancel(job.jobid, "the endpoint was killed")
        for path in self._directory.glob("*.log"):
            if path.stem not in active:
                path.unlink(missing_ok=True)

    def launch(self, shape: TaskShape) -> HostRecord:
        """Submit a host.

        Raises:
            OSError, RuntimeError, TypeError, ValueError: it can't be submitted.
            ConfigurationError: `engine.address` is not an address of this host.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._socket is None:
            self._socket = HostSocket(
                self._directory,
                self._address,
                spans_hosts=self._backend.spans_hosts,
                on_message=self._on_message,
            )
        host_id = secrets.token_hex(8)
        identity = f"{host_id}-{secrets.token_hex(16)}"
        self._socket.admit(host_id, identity)
        jobspec = build_jobspec(self._request(host_id, identity, shape, self._socket))
        return HostRecord(host_id, shape, self._backend.submit(jobspec, urgency=URGENCY))

    def _request(
        self, host_id: str, identity: str, shape: TaskShape, socket: HostSocket
    ) -> JobRequest:
        # Not `worker_init`: tasks run it themselves, and would get its variables from here, too.
        environment = self._setup.environment()
        public, secret = socket.keys
        settings = HostSettings(
            identity=identity,
            directory=str(self._directory),
            connect=socket.address.connect,
            server_key=socket.address.server_key,
            public_key=public,
            secret_key=secret,
            cores=shape.all_cores,
            given=[*environment, VARIABLE],
            start_timeout=START_TIMEOUT,
        )
        return JobRequest(
            command=self._setup.python_command(
                "-X", "utf8", "-m", "flux_endpoint.engine.held.host"
            ),
            cwd=str(self._directory),
            environment={**environment, VARIABLE: settings.dump()},
            resources=ResourceSpecification(
                num_nodes=1,
                cores_per_rank=shape.all_cores,
                queue=shape.queue,
                bank=shape.bank,
                job_name=JOB_NAME,
            ),
            stdout=str(self._log(host_id)),
            stderr=str(self._log(host_id)),
            mark={**self._mark, "host": host_id},
        )

    def send(self, host: HostRecord, *frames: bytes) -> None:
        """Send a message to a host; it is lost if the host is gone."""
        if self._socket is not None:
            self._socket.send(host.host_id, *frames)

    def cancel(self, host: HostRecord, note: str) -> None:
        """Cancel a host's job, now or once it has an id."""
        with suppress(RuntimeError):
            host.future.add_jobid_callback(
                lambda future: self._backend.cancel(future.jobid(timeout=0), note)
            )

    def forget(self, host: HostRecord) -> str:
        """Stop accepting messages of a host that has ended; return the end of its log."""
        if self._socket is not None:
            self._socket.dismiss(host.host_id)
        path = self._log(host.host_id)
        output = logs.tail(path, 20, 2000)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return output

    def close(self) -> None:
        """Close the socket; hosts end after their tasks."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _log(self, host_id: str) -> Path:
        return self._directory / f"{host_id}.log"
