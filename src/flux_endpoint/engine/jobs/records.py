"""Records of tasks' jobs on disk, by which the next agent finds the jobs again.

A record is written before its job is submitted, and gets the job id when that is known. A record
without an id was left by an agent that was killed in between. Then Flux's job list is searched for
a job with the record's mark.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend
from flux_endpoint.paths import write_private
from flux_endpoint.protocol.jobid import format_jobid

log = logging.getLogger(__name__)

_RECORD = "job.json"
#: Seconds until a submitted job must appear in Flux's job list.
_LISTED_AFTER = 5.0
#: Seconds by which the clocks of hosts may differ.
_SKEW = 60.0


@dataclass(frozen=True)
class Found:
    """A job that was submitted before a restart.

    Attributes:
        jobid: its id.
        starts: sizes of the task's output files when it was submitted, in bytes.
        is_held: whether the job holds an allocation for several tasks, of which this is one.
    """

    jobid: int
    starts: tuple[int, int]
    is_held: bool = False


class JobRecords:
    """The records of one endpoint's jobs. Used by the runner's thread only.

    Args:
        backend: where the jobs run.
        directory: has a directory for each task, with the files of its job.
    """

    def __init__(self, backend: Backend, directory: Path) -> None:
        self._backend = backend
        self._directory = directory

    def open(self) -> None:
        """Create the directory."""
        self._directory.mkdir(parents=True, exist_ok=True)

    def begin(
        self, task_id: str, starts: tuple[int, int], mark: Mapping[str, str]
    ) -> dict[str, str]:
        """Record that a job is about to be submitted; return the mark that it must have."""
        submission = secrets.token_hex(8)
        self._write(task_id, {"submission": submission, "asked": time.time(), "starts": starts})
        return {**mark, "submission": submission}

    def identified(self, task_id: str, jobid: int, starts: tuple[int, int]) -> None:
        """Record the id of a task's job."""
        self._write(task_id, {"jobid": jobid, "starts": starts})

    def given(self, task_id: str, jobid: int, starts: tuple[int, int]) -> None:
        """Record that a task is about to start in the allocation that a job holds."""
        self._write(task_id, {"jobid": jobid, "starts": starts, "is_held": True})

    def _write(self, task_id: str, record: dict[str, object]) -> None:
        path = self._path(task_id)
        # No fsync: if this host crashes, the instance is gone, too.
        text = json.dumps({"instance": self._backend.instance, **record})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(path, text, durable=False)
        except OSError as error:
            logs.event(log, logging.WARNING, "can't record a job for restarts", reason=error)

    def find(self, task_id: str) -> Found | None:
        """Return the job that was submitted for a task in this instance, or `None`.

        Raises:
            OSError: Flux must be asked, and does not answer.
        """
        try:
            record = json.loads(self._path(task_id).read_text(encoding="utf-8"))
            starts = (int(record["starts"][0]), int(record["starts"][1]))
            if self._backend.kind != "flux" or record["instance"] != self._backend.instance:
                return None
            if "jobid" in record:
                return Found(int(record["jobid"]), starts, bool(record.get("is_held")))
            submission, asked = str(record["submission"]), float(record["asked"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
        jobid = self._listed(submission, asked)
        return None if jobid is None else Found(jobid, starts)

    def _listed(self, submission: str, asked: float) -> int | None:
        """Return the job with a mark; wait for it, because its submission was requested."""
        mark = {"submission": submission}
        left = asked + _LISTED_AFTER - time.time()
        jobid = self._in_list(mark, asked)
        if jobid is None and 0 < left <= _LISTED_AFTER:
            jobid = self._backend.await_marked(mark, left)
            if jobid is None:  # it may have ended before the subscription
                jobid = self._in_list(mark, asked)
        if jobid is not None:
            logs.event(log, logging.WARNING, "job found by its mark", job=format_jobid(jobid))
        return jobid

    def _in_list(self, mark: Mapping[str, str], asked: float) -> int | None:
        found = self._backend.marked_jobs(mark, since=asked - _SKEW)
        return found[0].jobid if found else None

    def forget(self, task_id: str) -> None:
        """Invalidate a job's record: the task gets another job, or none."""
        with suppress(OSError):
            self._path(task_id).unlink(missing_ok=True)

    def remove(self, task_id: str) -> None:
        """Remove all files of a task's job."""
        shutil.rmtree(self._directory / task_id, ignore_errors=True)

    def remove_all_but(self, task_ids: Collection[str]) -> None:
        """Remove the files of other tasks' jobs."""
        with suppress(OSError):
            for path in list(self._directory.iterdir()):
                if path.name not in task_ids:
                    shutil.rmtree(path, ignore_errors=True)

    def directory_of(self, task_id: str) -> Path:
        """Return the directory of the files of a task's job."""
        return self._directory / task_id

    def _path(self, task_id: str) -> Path:
        return self.directory_of(task_id) / _RECORD
