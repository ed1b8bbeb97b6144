"""Starting managers as jobs, and the one ZeroMQ socket that they all connect to."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import zmq

from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend, JobFuture
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import Amount
from flux_endpoint.engine.environment import job_environment
from flux_endpoint.engine.jobspec import JobRequest, build_jobspec
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.workers.gpus import workers_of_node
from flux_endpoint.engine.workers.settings import VARIABLE, ManagerSettings
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.paths import write_private
from flux_endpoint.protocol.resources import ResourceSpecification

log = logging.getLogger(__name__)

#: Bytes that the path of a Unix socket may have (sun_path, less the final NUL and some room).
_LONGEST_SOCKET_PATH = 100
#: Seconds for which managers outlive a lost agent: long enough for a network to come back, short
#: enough that what they run is hardly run twice when another agent takes over.
_ORPHAN_TIMEOUT = 10.0
#: Seconds for this host to reach itself.
_CONNECT_TIMEOUT = 3.0
_TAIL = 2000  # bytes of a manager's log that an error shows


class ManagerLauncher:
    """Owns the socket, its keys and the managers' log files. Used by the pool's thread only."""

    def __init__(
        self,
        backend: Backend,
        config: FluxEngineConfig,
        *,
        tasks: TaskSettings,
        directory: Path,
        output: OutputLog,
    ) -> None:
        self._output = output
        self._backend = backend
        self._config = config
        self._tasks = tasks
        self._directory = directory
        self._token = secrets.token_hex(16)
        self._trusted: set[bytes] = set()
        self._scratch: str | None = None
        self._socket_path: Path | None = None
        self._context = zmq.Context()
        self._connect = ""
        self._server_key = self._client_public = self._client_secret = b""
        self.socket = self._context.socket(zmq.ROUTER)
        #: Most workers of one manager.
        self.workers = workers_of_node(backend, config)

    def open(self) -> None:
        """Bind: a Unix socket where every job runs on this host, else TCP with CURVE.

        Raises:
            ConfigurationError: `engine.address` is none at which this host is reached.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._end_leftovers()
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)  # the pool bounds what managers hold
        self.socket.setsockopt(zmq.LINGER, 500)
        # A manager may connect again before we have noticed that its connection broke: without
        # this it would not be heard any more.
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if not self._backend.spans_hosts:
            path = self._directory / "pool.sock"
            if len(bytes(path)) > _LONGEST_SOCKET_PATH:
                self._scratch = tempfile.mkdtemp(prefix="flux-endpoint-")
                path = Path(self._scratch) / "pool.sock"
            path.unlink(missing_ok=True)
            self._socket_path = path
            self._connect = f"ipc://{path}"
            self.socket.bind(self._connect)
            return
        self._server_key, server_secret = zmq.curve_keypair()
        self._client_public, self._client_secret = zmq.curve_keypair()
        self.socket.curve_server = True
        self.socket.curve_secretkey = server_secret
        port = self.socket.bind_to_random_port("tcp://*")
        if self._config.address is not None:
            _check_address(self._config.address, port)
        self._connect = f"tcp://{self._config.address or _own_address()}:{port}"

    def amount(self, workers: int) -> Amount:
        """Return what a manager of so many workers has of its node: cores, and gpus, for each.

        Where a node shall have more workers than cores, they share them.
        """
        cores = self._backend.resources.cores_per_node
        return Amount(
            math.ceil(workers * min(float(self._config.cores_per_worker), cores / self.workers)),
            workers * self._config.gpus_per_worker,
        )

    def launch(self, manager_id: str, workers: int, urgency: int) -> JobFuture:
        """Submit the job of a new manager: one node, one task."""
        settings = ManagerSettings(
            manager_id=manager_id,
            connect=self._connect,
            token=self._token,
            server_key=self._server_key.decode(),
            public_key=self._client_public.decode(),
            secret_key=self._client_secret.decode(),
            workers=workers,
            gpus_per_worker=self._config.gpus_per_worker,
            tasks=self._tasks,
            orphan_timeout=_ORPHAN_TIMEOUT,
        )
        output = str(self._log_file(manager_id))
        amount = self.amount(workers)
        request = JobRequest(
            # Names of files, commands and what is printed do not depend on the nodes' locale.
            command=[
                sys.executable,
                "-P",
                "-X",
                "utf8",
                "-m",
                "flux_endpoint.engine.workers.manager",
            ],
            cwd=str(self._directory),
            environment={**job_environment(), VARIABLE: settings.dump()},
            resources=ResourceSpecification(
                num_nodes=1,
                cores_per_rank=amount.cores,
                gpus_per_rank=amount.gpus,
                job_name="flux-endpoint-workers",
            ),
            stdout=output,
            stderr=output,
            mark=self._tasks.mark("workers"),
        )
        logs.event(log, logging.INFO, "starting workers", manager=manager_id, workers=workers)
        job = self._backend.submit(build_jobspec(request), urgency=urgency)
        job.add_jobid_callback(lambda future: self._record(manager_id, future))
        return job

    def _record(self, manager_id: str, job: JobFuture) -> None:
        """Note the job's id, so that an agent that finds it after a crash can end it."""
        with suppress(OSError, RuntimeError, CancelledError):
            record = {"jobid": job.jobid(timeout=0), "instance": self._backend.instance}
            write_private(self._job_file(manager_id), json.dumps(record))

    def _end_leftovers(self) -> None:
        """Cancel the managers of an agent that was killed: they hold nodes that we want."""
        for path in self._directory.glob("workers-*.job"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads(path.read_text(encoding="utf-8"))
                if record["instance"] == self._backend.instance:
                    self._backend.cancel(record["jobid"], "their endpoint was killed")
        for path in self._directory.glob("workers-*"):
            path.unlink(missing_ok=True)

    def cancel(self, job: JobFuture, note: str = "the endpoint stops") -> None:
        """Cancel a manager's job, now or as soon as it has an id."""
        job.add_jobid_callback(lambda future: self._backend.cancel(future.jobid(timeout=0), note))

    def send(self, manager_id: str, frames: list[bytes]) -> None:
        """Send a message to a manager; one that is gone loses it (its job's end says so)."""
        self.socket.send_multipart([manager_id.encode(), *frames])

    def receive(self) -> tuple[str, bytes, list[bytes]] | None:
        """Return the next message as (manager, kind, parts), or `None` if there is none now."""
        while True:
            try:
                identity, kind, *parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if kind == b"hello":
                if not secrets.compare_digest(parts[0], self._token.encode()):
                    # In general a manager of an earlier agent that found our socket in its place.
                    logs.event(log, logging.WARNING, "a stranger greeted the pool, sent away")
                    self.socket.send_multipart([identity, b"stop"])
                    continue
                self._trusted.add(identity)
            if identity not in self._trusted:
                continue
            if kind == b"output":
                self._output.write(parts[0])
            else:
                return identity.decode(), kind, parts

    def log_tail(self, manager_id: str) -> str:
        """Return the end of a manager's log."""
        try:
            with self._log_file(manager_id).open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
                return stream.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def forget(self, manager_id: str) -> None:
        """Remove what a manager that ended as it should has left on disk."""
        self._trusted.discard(manager_id.encode())
        self._log_file(manager_id).unlink(missing_ok=True)
        self._job_file(manager_id).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the socket and remove its path."""
        self.socket.close()
        self._context.term()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _log_file(self, manager_id: str) -> Path:
        return self._directory / f"workers-{manager_id}.log"

    def _job_file(self, manager_id: str) -> Path:
        return self._directory / f"workers-{manager_id}.job"


def _own_address() -> str:
    """Return the address under which this host's name is known; the loopback one if it has none."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _check_address(address: str, port: int) -> None:
    """Raise `ConfigurationError` unless this process listens at `address`, on all interfaces."""
    try:
        found = socket.getaddrinfo(address, port, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ConfigurationError(
            f"engine.address: {address!r} is neither an IPv4 address nor a name of one: set it to "
            "the address at which the nodes reach this host, or leave it out"
        ) from None
    host = str(found[0][4][0])
    with socket.socket() as own, suppress(OSError):
        own.bind((host, 0))
        return
    try:  # not of this host's own, but it may be translated
        socket.create_connection((host, port), _CONNECT_TIMEOUT).close()
    except OSError as error:
        shown = host if host == address else f"{address} ({host})"
        raise ConfigurationError(
            f"engine.address: {shown} is not an address of this host, which can't be reached "
            f"there ({error.strerror or error}): set it to one at which the nodes reach this host, "
            "or leave it out"
        ) from error
