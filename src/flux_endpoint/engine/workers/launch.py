"""Starts managers as jobs, and finds managers from before a restart."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import flux_endpoint
from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend, JobFuture
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import Amount
from flux_endpoint.engine.flux_jobs import MarkedJob
from flux_endpoint.engine.job_setup import JobSetup
from flux_endpoint.engine.jobspec import JobRequest, build_jobspec
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.workers.begun import BegunRecord
from flux_endpoint.engine.workers.files import ManagerFiles, ManagerNote
from flux_endpoint.engine.workers.gpus import workers_of_node
from flux_endpoint.engine.workers.pool_socket import PoolSocket
from flux_endpoint.engine.workers.settings import VARIABLE, ManagerSettings
from flux_endpoint.engine.workers.spool import SpooledEnd, read_spool
from flux_endpoint.errors import EngineError
from flux_endpoint.processes.helper import NOTICE
from flux_endpoint.protocol.resources import ResourceSpecification

log = logging.getLogger(__name__)

_JOB_NAME = "flux-endpoint-workers"
#: Seconds in which a new manager must reach its agent, and for which an idle manager outlives its
#: agent: long enough for a service manager to start the next agent.
_START_TIMEOUT, _ORPHAN_TIMEOUT = 10.0, 60.0
#: Seconds that a manager on the embedded executor has to write its ends to disk when the agent is
#: gone; the next agent waits as long.
_NOTICE, _NOTICE_TIMEOUT = 3.0, 10.0
#: Variables that differ between logins or shells and do not matter to tasks.
_VOLATILE = frozenset({"_", "OLDPWD", "PWD", "SHLVL", "TERM", "WINDOWID"})
_VOLATILE_PREFIXES = ("DBUS_", "SSH_", "TMUX", "XDG_")


@dataclass(frozen=True)
class FoundManager:
    """A manager from before a restart.

    Attributes:
        manager_id: its id.
        note: its record.
        job: its job, if that is still active.
        is_current: whether its configuration is the present one.
    """

    manager_id: str
    note: ManagerNote
    job: JobFuture
    is_current: bool


class ManagerLauncher:
    """Submits the jobs of managers, and keeps their files. Used by the pool's thread only.

    Args:
        backend: where the jobs run.
        config: options of the engine.
        tasks: how tasks run.
        directory: the engine's directory.
        socket: the socket that managers connect to.
    """

    def __init__(
        self,
        backend: Backend,
        config: FluxEngineConfig,
        *,
        tasks: TaskSettings,
        directory: Path,
        socket: PoolSocket,
    ) -> None:
        self._backend = backend
        self._config = config
        self._tasks = tasks
        self._directory = directory
        self._socket = socket
        self._setup = JobSetup.of(config)
        self._command = self._setup.python_command(
            # File names, commands and output must not depend on the nodes' locale.
            "-X",
            "utf8",
            "-m",
            "flux_endpoint.engine.workers.manager",
        )
        #: The most workers of one manager.
        self.workers = workers_of_node(backend, config)

    def _configuration(self) -> str:
        """Return a digest of everything a manager is started with."""
        environment = {
            name: value
            for name, value in self._setup.environment().items()
            if name not in _VOLATILE and not name.startswith(_VOLATILE_PREFIXES)
        }
        parts = [
            flux_endpoint.__version__,
            self._command,
            self._setup.snippet,
            asdict(self._tasks),
            self._config.cores_per_worker,
            self._config.gpus_per_worker,
            environment,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def amount(self, workers: int) -> Amount:
        """Return the cores and gpus that a manager of `workers` workers has on its node.

        If a node is configured with more workers than cores, the workers share cores.
        """
        cores = self._backend.resources.cores_per_node
        return Amount(
            math.ceil(workers * min(float(self._config.cores_per_worker), cores / self.workers)),
            workers * self._config.gpus_per_worker,
        )

    def launch(self, manager_id: str, workers: int, urgency: int, *, permanent: bool) -> JobFuture:
        """Submit the job (one node, one task) of a new manager; its record is written before.

        Raises:
            OSError, RuntimeError, TypeError, ValueError: it can't be submitted.
        """
        files = ManagerFiles(self._directory, manager_id)
        amount = self.amount(workers)
        note = ManagerNote(
            instance=self._backend.instance,
            identity=f"{manager_id}-{secrets.token_hex(16)}",
            configuration=self._configuration(),
            workers=workers,
            permanent=permanent,
            cores=amount.cores,
            gpus=amount.gpus,
        )
        note.write(files)
        self._socket.admit(manager_id, note.identity)
        logs.event(log, logging.INFO, "starting workers", manager=manager_id, workers=workers)
        request = self._request(files, note, amount)
        return self._backend.submit(build_jobspec(request), urgency=urgency)

    def _request(self, files: ManagerFiles, note: ManagerNote, amount: Amount) -> JobRequest:
        settings = ManagerSettings(
            manager_id=files.manager_id,
            identity=note.identity,
            directory=str(self._directory),
            connect=self._socket.address.connect,
            server_key=self._socket.address.server_key,
            public_key=self._socket.client_public,
            secret_key=self._socket.client_secret,
            workers=note.workers,
            gpus_per_worker=self._config.gpus_per_worker,
            tasks=self._tasks,
            start_timeout=_START_TIMEOUT,
            orphan_timeout=_ORPHAN_TIMEOUT,
        )
        request = JobRequest(
            command=self._command,
            cwd=str(self._directory),
            environment={
                **self._setup.environment(),
                VARIABLE: settings.dump(),
                NOTICE: f"{_NOTICE:g}",
            },
            resources=ResourceSpecification(
                num_nodes=1,
                cores_per_rank=amount.cores,
                gpus_per_rank=amount.gpus,
                job_name=_JOB_NAME,
            ),
            stdout=str(files.log),
            stderr=str(files.log),
            mark={**self._tasks.mark("workers"), "manager": files.manager_id},
        )
        return self._setup.prepare(request)

    # Managers from before a restart

    def find(self) -> tuple[list[FoundManager], list[SpooledEnd]]:
        """Return the managers of earlier agents that may hold tasks, and the ends that others left.

        Jobs of managers that have not started are cancelled. Managers in another instance can't be
        followed: they are ignored, except for the ends that they have left.

        Raises:
            EngineError: Flux does not list the jobs.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        jobs = self._jobs()
        found: list[FoundManager] = []
        ends: list[SpooledEnd] = []
        for files in ManagerFiles.all(self._directory):
            note, job = ManagerNote.read(files), jobs.get(files.manager_id)
            if note is not None and job is not None and note.instance == self._backend.instance:
                if job.has_begun:
                    self._socket.admit(files.manager_id, note.identity)
                    future = self._backend.executor.attach(job.jobid)
                    current = note.configuration == self._configuration()
                    found.append(FoundManager(files.manager_id, note, future, current))
                    continue
                self._backend.cancel(job.jobid, "their endpoint was killed")
            if not files.await_end(_NOTICE_TIMEOUT):
                text = "workers of an earlier run are alive"
                logs.event(log, logging.WARNING, text, manager=files.manager_id)
            left = list(read_spool(files.spool))
            ends.extend(left)
            files.remove(log=True, spool=not left)
        return found, ends

    def _jobs(self) -> dict[str, MarkedJob]:
        if not any(files.record.exists() for files in ManagerFiles.all(self._directory)):
            return {}
        try:
            jobs = self._backend.marked_jobs(self._tasks.mark("workers"), name=_JOB_NAME)
        except OSError as error:
            raise EngineError(
                f"Flux does not list the workers from before the restart: {error}"
            ) from error
        return {str(job.mark.get("manager")): job for job in jobs}

    # Files of managers

    def begun(self, manager_id: str) -> BegunRecord | None:
        """Return which tasks a manager's workers have begun; `None` if unknown."""
        with suppress(OSError):
            return BegunRecord(ManagerFiles(self._directory, manager_id).begun)
        return None

    def spooled(self, manager_id: str) -> Iterator[SpooledEnd]:
        """Yield the ends that a manager has left on disk."""
        return read_spool(ManagerFiles(self._directory, manager_id).spool)

    def cancel(self, job: JobFuture, note: str = "the endpoint stops") -> None:
        """Cancel a manager's job, now or once it has an id."""
        job.add_jobid_callback(lambda future: self._backend.cancel(future.jobid(timeout=0), note))

    def log_tail(self, manager_id: str) -> str:
        """Return the last lines of a manager's log."""
        return logs.tail(ManagerFiles(self._directory, manager_id).log, 40, 2000)

    def forget(self, manager_id: str, *, failed: bool = False, spool: bool = True) -> None:
        """Stop accepting messages of a manager, and remove its files.

        Args:
            manager_id: the manager, which has ended.
            failed: whether to keep its log.
            spool: whether to remove its spool as well: no end in it is needed.
        """
        self._socket.dismiss(manager_id)
        ManagerFiles(self._directory, manager_id).remove(log=not failed, spool=spool)
