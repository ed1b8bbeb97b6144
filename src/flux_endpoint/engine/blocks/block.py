"""A block with its tasks, and the launcher that submits, recovers and removes blocks."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.backend import JobFuture
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.blocks.rates import BlockRates
from flux_endpoint.engine.blocks.states import BlockState
from flux_endpoint.engine.config import BlocksConfig
from flux_endpoint.engine.ended_blocks import JOB_NAME, kept_ends, mark_of, take_ends
from flux_endpoint.engine.engine import FluxEngine
from flux_endpoint.engine.environment import job_environment
from flux_endpoint.engine.flux_backend import FluxBackend
from flux_endpoint.engine.jobspec import JobRequest, build_jobspec
from flux_endpoint.engine.workers.spool import SpooledEnd
from flux_endpoint.errors import EngineError
from flux_endpoint.paths import write_private
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.resources import ResourceSpecification

log = logging.getLogger(__name__)

_RECORD = "block.json"
_ASKED = "asked"
#: Seconds until a submitted job must appear in Flux's job list.
_LISTED_AFTER = 5.0
#: Sleeps with the broker's standard streams closed; else the job's end would wait for them.
_WAIT = "exec sleep inf < /dev/null > /dev/null 2>&1"


@dataclass(eq=False)
class Held:
    """A task that has not ended yet.

    Attributes:
        walltime: the task's time limit in seconds; `None`: it has none.
        job: whether it becomes a job of its own.
        cores: the number of cores it takes.
        attempts: why each earlier attempt has failed.
    """

    task: EngineTask
    walltime: float | None = None
    job: bool = False
    cores: int = 1
    attempts: list[str] = field(default_factory=list)
    cancelled: bool = False
    #: The block that did not start it in time.
    avoid: str = ""
    #: Number of new blocks that had too little time left for it.
    too_late: int = 0


@dataclass(eq=False)
class Block:
    """An allocation that belongs to the endpoint.

    Attributes:
        name: its name in this process; users see its job id.
        expires: its end, in seconds since the epoch.
        cores: the cores it has for jobs.
        idle_since: monotonic time at which it became idle.
    """

    name: str
    future: JobFuture
    state: BlockState = BlockState.PENDING
    jobid: int | None = None
    #: Start of its job, in seconds since the epoch.
    started: float = 0.0
    expires: float = 0.0
    nodes: int = 0
    cores: int = 0
    engine: FluxEngine | None = None
    tasks: dict[str, Held] = field(default_factory=dict)
    meter: BlockRates = field(default_factory=BlockRates)
    idle_since: float | None = None
    #: Whether Flux has reported `clean`; the job has ended once its future is done, too.
    is_clean: bool = False
    #: Whether it was started before a restart.
    was_found: bool = False
    #: Whether its engine knows that all earlier tasks have been submitted again.
    is_recovered: bool = False

    @property
    def label(self) -> str:
        """The block's name for people."""
        return "a block" if self.jobid is None else f"the block {format_jobid(self.jobid)}"

    def load(self, *, jobs: bool) -> int:
        """Return the number of cores that its jobs, or its other tasks, take."""
        return sum(held.cores for held in self.tasks.values() if held.job == jobs)

    def view(self) -> dict[str, Any]:
        """Return the block's entry in the status report."""
        return {
            "jobid": self.jobid,
            "id": None if self.jobid is None else format_jobid(self.jobid),
            "state": self.state.reported,
            "nodes": self.nodes,
            "expires": self.expires or None,
            "tasks": len(self.tasks),
        }


class BlockLauncher:
    """Submits the jobs of blocks, and keeps a directory for each block.

    Args:
        backend: the enclosing instance.
        config: options of the blocks.
        endpoint_id: UUID of the endpoint that owns the blocks.
        directory: `engine/blocks` in the endpoint's directory.
    """

    def __init__(
        self, backend: FluxBackend, config: BlocksConfig, *, endpoint_id: str, directory: Path
    ) -> None:
        self._backend = backend
        self._config = config
        self._endpoint_id = endpoint_id
        self._directory = directory
        #: Number of submitted blocks whose job ids are still unknown.
        self._unknown = 0

    def submit(self) -> JobFuture:
        """Submit a block: a Flux instance on whole nodes, which runs until it is cancelled."""
        self._directory.mkdir(parents=True, exist_ok=True)
        # In case this process is killed before it knows the job id.
        self._unknown += 1
        write_private(self._directory / _ASKED, str(time.time()), durable=False)
        output = str(self._directory / "{{id.dec}}.log")
        request = JobRequest(
            command=["flux", "broker", "sh", "-c", _WAIT],
            cwd=str(self._directory),
            environment=job_environment(),
            resources=ResourceSpecification(
                num_ranks=self._config.nodes_per_block,
                num_nodes=self._config.nodes_per_block,
                exclusive=True,
                walltime=self._config.walltime,
                queue=self._config.queue,
                bank=self._config.bank,
                job_name=JOB_NAME,
            ),
            launch="node",
            stdout=output,
            stderr=output,
            # As Flux sets it for nested instances.
            shell_options={"mpi": "none", "exit-timeout": "none"},
            mark=mark_of(self._endpoint_id),
        )
        return self._backend.submit(build_jobspec(request))

    def close(self) -> None:
        """Submit no more blocks."""
        with suppress(OSError):
            (self._directory / _ASKED).unlink(missing_ok=True)

    def directory_of(self, jobid: int) -> Path:
        """Return the directory of a block's engine."""
        return self._directory / format_jobid(jobid, "dec")

    def record(self, jobid: int) -> None:
        """Record a block, so that it is found again after a restart."""
        self._unknown = max(0, self._unknown - 1)
        if not self._unknown:
            self.close()
        directory = self.directory_of(jobid)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            record = {"jobid": jobid, "instance": self._backend.instance}
            write_private(directory / _RECORD, json.dumps(record))
        except OSError as error:
            logs.event(log, logging.WARNING, "can't record a block for restarts", reason=error)

    def find(self) -> tuple[set[int], list[SpooledEnd]]:
        """Return the jobs of earlier blocks in this instance, and the ends that others have left.

        Raises:
            EngineError: Flux does not list the jobs.
        """
        found = set()
        ends = list(kept_ends(self._directory))
        for path in sorted(self._directory.glob("*/")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
                if record["instance"] == self._backend.instance:
                    found.add(int(record["jobid"]))
                    continue
            ends.extend(take_ends(path))
        found.update(self._listed())
        return found, ends

    def _listed(self) -> list[int]:
        """Return the job ids of the blocks that Flux knows, recorded or not."""
        asked = 0.0
        with suppress(OSError, ValueError):
            asked = float((self._directory / _ASKED).read_text(encoding="utf-8"))
        time.sleep(max(0.0, min(_LISTED_AFTER, asked + _LISTED_AFTER - time.time())))
        try:
            jobs = self._backend.marked_jobs(mark_of(self._endpoint_id), name=JOB_NAME)
        except OSError as error:
            raise EngineError(
                f"Flux does not list the blocks from before the restart: {error}"
            ) from error
        return [job.jobid for job in jobs]

    def has_workers(self, jobid: int) -> bool:
        """Return whether workers were started in a block; these may have tasks."""
        engine = self.directory_of(jobid) / "engine"
        return any(path.suffix in (".json", ".results") for path in engine.glob("workers-*"))

    def jobs_in(self, jobid: int) -> Iterator[str]:
        """Yield the ids of tasks whose jobs were submitted in an earlier block."""
        for path in (self.directory_of(jobid) / "engine" / "jobs").glob("*/job.json"):
            yield path.parent.name

    def log_tail(self, jobid: int) -> str:
        """Return the last log lines of a block's Flux instance."""
        return logs.tail(self._log(jobid), 40, 2000)

    def forget(self, jobid: int) -> list[SpooledEnd]:
        """Remove an ended block's files; return the task ends among them, which stay on disk."""
        self._log(jobid).unlink(missing_ok=True)
        return take_ends(self.directory_of(jobid))

    def _log(self, jobid: int) -> Path:
        return self._directory / f"{format_jobid(jobid, 'dec')}.log"
