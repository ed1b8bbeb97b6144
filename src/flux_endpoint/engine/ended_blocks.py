"""Task ends that ended blocks have left on disk and no agent has processed yet."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend, JobFuture
from flux_endpoint.engine.workers.spool import SpooledEnd, read_spool
from flux_endpoint.errors import EngineError
from flux_endpoint.protocol.jobid import format_jobid

log = logging.getLogger(__name__)

#: Name of the jobs of blocks.
JOB_NAME = "flux-endpoint-block"
#: Prefix of files that were moved out of a block's directory.
_LEFT = "left-"
#: Seconds that unwanted blocks have to end.
_END_TIMEOUT = 30.0


def mark_of(endpoint_id: str) -> dict[str, str]:
    """Return the mark of an endpoint's blocks; see `TaskSettings.mark`."""
    return {"endpoint": endpoint_id, "kind": "block"}


def take_ends(block_directory: Path) -> list[SpooledEnd]:
    """Remove an ended block's directory; return the task ends in it, which stay on disk."""
    ends: list[SpooledEnd] = []
    for path in sorted((block_directory / "engine").glob("workers-*.results")):
        kept = block_directory.parent / f"{_LEFT}{block_directory.name}-{path.name}"
        with suppress(OSError):
            path.replace(kept)
            ends.extend(read_spool(kept))
    shutil.rmtree(block_directory, ignore_errors=True)
    return ends


def kept_ends(directory: Path) -> Iterator[SpooledEnd]:
    """Yield the task ends that earlier blocks have left in `engine/blocks`."""
    for path in sorted(directory.glob(f"{_LEFT}*.results")):
        yield from read_spool(path)


def _end_of(job: JobFuture) -> threading.Event:
    """Return an event that is set when a job is inactive, or can't be followed any more."""
    over = threading.Event()
    job.add_event_callback("clean", lambda *_: over.set())
    # A cancelled job has an exception at once, but ends later.
    job.add_done_callback(lambda _: over.set() if isinstance(job.exception(), OSError) else None)
    return over


def end_all_blocks(backend: Backend, endpoint_id: str, directory: Path) -> list[SpooledEnd]:
    """End the blocks of an endpoint whose configuration has none; return the ends they left.

    Args:
        backend: the instance in which they run.
        endpoint_id: UUID of the endpoint that owns them.
        directory: `engine/blocks` in the endpoint's directory.

    Raises:
        EngineError: Flux does not list the blocks.
    """
    if not directory.exists():
        return []
    try:
        jobs = backend.marked_jobs(mark_of(endpoint_id), name=JOB_NAME)
    except OSError as error:
        raise EngineError(f"Flux does not list the endpoint's blocks: {error}") from error
    gone: list[threading.Event] = []
    for job in jobs:
        logs.event(log, logging.WARNING, "ending an unwanted block", job=format_jobid(job.jobid))
        backend.cancel(job.jobid, "the endpoint is configured without blocks")
        gone.append(_end_of(backend.executor.attach(job.jobid)))
    until = time.monotonic() + _END_TIMEOUT
    for each in gone:
        each.wait(max(0.0, until - time.monotonic()))
    ends = [end for path in sorted(directory.glob("*/")) for end in take_ends(path)]
    return [*kept_ends(directory), *ends]
