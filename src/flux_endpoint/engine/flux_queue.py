"""All jobs of a Flux instance, whoever submitted them, as its job manager reports them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.demand import Demand, JobDemand, placement_in
from flux_endpoint.engine.flux_futures import then
from flux_endpoint.engine.job_queue import JobQueue

log = logging.getLogger(__name__)

#: Events that change a job's request or its resources.
_EVENTS = ("submit", "urgency", "priority", "alloc", "exception", "free", "clean")


class FluxQueue:
    """Reports waiting jobs and allocated resources on each change. Used by one thread.

    Only the owner of an instance may watch all of its jobs; for a guest, this reports nothing.

    Args:
        flux: Flux's bindings.
        ours: mark of the jobs to leave out.
        on_demand: called with each report, on the thread that runs the handle's reactor.
    """

    def __init__(
        self,
        flux: ModuleType,
        ours: Mapping[str, str] | None,
        on_demand: Callable[[JobDemand], None],
    ) -> None:
        self._flux = flux
        self._ours = ours
        self._on_demand = on_demand
        self._queue = JobQueue(complete=True)
        #: Whether the jobs that existed at the start have all been reported.
        self._caught_up = False
        self._handle: Any = None
        #: Whether a request for the down nodes is pending, and whether they have changed since.
        self._asking = self._outdated = False

    def start(self, handle: Any) -> None:
        """Subscribe to the events; they arrive when the handle's reactor runs."""
        self._handle = handle
        streaming = self._flux.constants.FLUX_RPC_STREAMING
        wanted = {"full": False, "allow": dict.fromkeys(_EVENTS, 1)}
        then(handle.rpc("job-manager.events-journal", wanted, flags=streaming), self._on_entry)
        then(handle.rpc("resource.journal", {}, flags=streaming), self._nodes_changed)

    def _on_entry(self, journal: Any) -> None:
        try:
            self._take(journal.get())
            journal.reset()
        except OSError as error:
            logs.event(log, logging.INFO, "Flux does not report other users' jobs", reason=error)

    def _take(self, entry: Mapping[str, Any]) -> None:
        jobid, jobspec = entry["id"], entry.get("jobspec")
        if not entry["events"]:  # the end of the backlog; this entry has no job id
            self._caught_up = True
        elif jobspec is None or not self._is_ours(jobspec):
            for event in entry["events"]:
                if event["name"] == "submit":
                    self._queue.add(jobid, Demand.of_jobspec(str(jobid), jobspec))
                placement = placement_in(entry.get("R")) if event["name"] == "alloc" else {}
                self._queue.event(jobid, event["name"], event.get("context", {}), placement)
        self._report()

    def _is_ours(self, jobspec: Any) -> bool:
        with suppress(LookupError, TypeError, AttributeError):
            mark = jobspec["attributes"]["user"]["flux_endpoint"]
            return self._ours is not None and self._ours.items() <= mark.items()
        return False

    def _nodes_changed(self, journal: Any) -> None:
        with suppress(OSError):  # not the owner, or a Flux without this journal
            journal.get()
            journal.reset()
            self._outdated = True
            self._ask_for_nodes()

    def _ask_for_nodes(self) -> None:
        if self._outdated and not self._asking:
            self._asking, self._outdated = True, False
            then(resource_list(self._handle), self._nodes_reported)

    def _nodes_reported(self, answer: Any) -> None:
        self._asking = False
        with suppress(OSError):
            down = answer.get().down
            self._queue.set_down(placement_in(json.loads(down.encode())))
            self._report()
        self._ask_for_nodes()

    def _report(self) -> None:
        if self._caught_up and (demand := self._queue.news()) is not None:
            self._on_demand(demand)


def resource_list(handle: Any) -> Any:
    """Request the resources of an instance and their states; return Flux's future."""
    resource = __import__("flux.resource", fromlist=["resource_list"])
    return resource.resource_list(handle)
