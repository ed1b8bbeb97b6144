"""The jobs of an instance that have an endpoint's mark, from Flux's job list."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.flux_reads import Handles
from flux_endpoint.protocol.jobid import format_jobid

log = logging.getLogger(__name__)

#: Timeout (s) of each request to Flux.
_TIMEOUT = 10.0
#: States of a job (RFC 21) that has its resources.
_RUNNING = 16 | 32  # RUN, CLEANUP
_INACTIVE = 64


@dataclass(frozen=True)
class MarkedJob:
    """A job that an endpoint has submitted.

    Attributes:
        jobid: its id.
        mark: its attribute `user.flux_endpoint`.
        has_begun: whether it has, or had, its resources.
        is_over: whether it has ended.
    """

    jobid: int
    mark: Mapping[str, Any]
    has_begun: bool
    is_over: bool


class JobList:
    """Finds this user's jobs by their mark. May take long; for any thread but the main one.

    Args:
        flux: Flux's bindings.
        handles: connections to the instance.
    """

    def __init__(self, flux: ModuleType, handles: Handles) -> None:
        self._flux = flux
        self._handles = handles

    def find(
        self,
        mark: Mapping[str, str],
        *,
        name: str | None = None,
        since: float | None = None,
    ) -> list[MarkedJob]:
        """Return the jobs whose mark includes `mark`, the latest first.

        Args:
            mark: entries that a job's mark must have.
            name: only jobs with this name.
            since: also include inactive jobs that were submitted at or after this time, in seconds
                since the epoch; default: only active jobs.

        Raises:
            OSError: Flux does not answer.
        """
        wanted: list[dict[str, list[Any]]] = [{"userid": [os.getuid()]}]
        if name is not None:
            wanted.append({"name": [name]})
        if since is None:
            wanted.append({"states": ["active"]})
        else:
            wanted.append({"t_submit": [f">={since:.6f}"]})
        request = {
            "max_entries": 0,
            "attrs": ["state", "t_submit", "t_run"],
            "constraint": {"and": wanted},
        }
        with self._handles.lend() as handle:
            return self._listed(handle, request, mark)

    def _listed(
        self, handle: Any, request: dict[str, Any], mark: Mapping[str, str]
    ) -> list[MarkedJob]:
        answer = handle.rpc("job-list.list", request).wait_for(_TIMEOUT).get()
        jobs = sorted(answer["jobs"], key=lambda job: -job.get("t_submit", 0.0))
        # Send all requests first: waiting for each answer would add a round trip per request.
        asked = [(job, self._ask(handle, job["id"])) for job in jobs]
        return [
            MarkedJob(
                job["id"],
                found,
                has_begun=bool(job["state"] & _RUNNING or job.get("t_run")),
                is_over=bool(job["state"] & _INACTIVE),
            )
            for job, question in asked
            if mark.items() <= (found := _mark_of(question, job["id"])).items()
        ]

    def _ask(self, handle: Any, jobid: int) -> Any:
        return self._flux.job.kvslookup.job_info_lookup(handle, jobid, keys=["jobspec"])


def await_marked(
    flux: ModuleType, handle: Any, mark: Mapping[str, str], timeout: float
) -> int | None:
    """Wait until the job manager reports a job whose mark includes `mark`; return its id.

    The job manager knows a job at once, the job list a moment later. Only the owner of an instance
    may watch the job manager: for a guest, this waits until the job list has caught up.

    Args:
        flux: Flux's bindings.
        handle: a connection that nothing else uses.
        mark: entries that the job's mark must have.
        timeout: the longest time to wait, in seconds.

    Raises:
        OSError: Flux is gone.
    """
    until = time.monotonic() + timeout
    wanted = {"full": False, "allow": {"submit": 1}}
    journal = handle.rpc(
        "job-manager.events-journal", wanted, flags=flux.constants.FLUX_RPC_STREAMING
    )
    try:
        while (left := until - time.monotonic()) > 0:
            try:
                entry = journal.wait_for(left).get()
            except TimeoutError:
                continue  # Flux's timers may expire a few milliseconds early
            if mark.items() <= _mark_in(entry.get("jobspec")).items():
                return int(entry["id"])
            journal.reset()
    except PermissionError:
        time.sleep(max(0.0, until - time.monotonic()))
    return None


def _mark_of(question: Any, jobid: int) -> dict[str, Any]:
    try:
        jobspec = json.loads(question.wait_for(_TIMEOUT).get()["jobspec"])
    except (OSError, LookupError, ValueError) as error:
        logs.event(log, logging.INFO, "unreadable jobspec", job=format_jobid(jobid), reason=error)
        return {}
    return _mark_in(jobspec)


def _mark_in(jobspec: Any) -> dict[str, Any]:
    with suppress(LookupError, TypeError):
        mark = jobspec["attributes"]["user"]["flux_endpoint"]
        return mark if isinstance(mark, dict) else {}
    return {}
