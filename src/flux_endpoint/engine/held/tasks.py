"""A task that runs in a held allocation, as its runner sees it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flux_endpoint.engine.held.ends import HeldEnd
from flux_endpoint.engine.local.event_log import EventLogEvent, JobException, usage_in
from flux_endpoint.engine.local.executor import deliver
from flux_endpoint.engine.local.future import LocalExecutorFuture
from flux_endpoint.usage import Usage

#: Events that the agent has reported itself, by the time that the host reports them.
_REPORTED = frozenset({"submit", "depend", "priority", "alloc"})


class DeclinedError(Exception):
    """The task did not start in a held allocation; it becomes a job of its own."""

    type = "cancel"
    note = ""


class JobControl(Protocol):
    """The operations on one task's job. A backend has them for jobs of their own."""

    def cancel(self, jobid: int, note: str) -> None: ...  # noqa: D102
    def kill(self, jobid: int, signum: int) -> None: ...  # noqa: D102
    def set_urgency(self, jobid: int, urgency: int) -> None: ...  # noqa: D102
    def exec_events(self, jobid: int) -> list[dict[str, Any]]: ...  # noqa: D102
    def job_usage(self, jobid: int) -> Usage | None: ...  # noqa: D102
    def sweep(self, jobid: int, variable: str) -> None: ...  # noqa: D102


@dataclass(eq=False)
class HeldTask:
    """A task for a held allocation. It controls itself: the job with its id is the allocation's.

    Attributes:
        task_id: the task.
        directory: directory of the task's job.
        starts: sizes of its output files, in bytes.
        jobspec: what its host runs.
        since: monotonic time at which it was submitted.
        on_cancel: called with the task and a note to end it.
        on_kill: called with the task and a signal for it.
        job: the allocation's job, which has outcomes of its own if the host is lost.
    """

    task_id: str
    directory: Path
    starts: tuple[int, int]
    jobspec: Mapping[str, Any]
    since: float
    on_cancel: Callable[[HeldTask, str], None]
    on_kill: Callable[[HeldTask, int], None]
    job: JobControl
    future: LocalExecutorFuture = field(default_factory=lambda: LocalExecutorFuture(None))
    #: The program that its duration is remembered by.
    program: str = ""
    submit: EventLogEvent = field(default_factory=lambda: EventLogEvent.now("submit"))
    began_at: float | None = None
    #: Whether it ended with its host, which may have left processes.
    was_lost: bool = False
    _exec_events: list[EventLogEvent] = field(default_factory=list)
    _seen: int = 0

    @property
    def encoded(self) -> bytes:
        """The jobspec as JSON."""
        return json.dumps(self.jobspec).encode()

    # Reports

    def placed(self, jobid: int) -> bool:
        """Give it an allocation; return whether it still wants one."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return False
        self.future._set_jobid(jobid)
        # Not before: a job of its own would have another one.
        self.future._set_event(self.submit)
        return True

    def allocated(self, alloc: Mapping[str, Any]) -> None:
        """Report which resources it has: those of the allocation."""
        self.future._set_event(EventLogEvent.now("alloc", **alloc))

    def happened(self, events: list[EventLogEvent]) -> None:
        """Report its events so far; earlier ones are known."""
        fresh, self._seen = events[self._seen :], len(events)
        for event in fresh:
            if event.name == "start":
                self.began_at = event.timestamp
            if event.name not in _REPORTED:
                deliver(self.future, event)

    def ended(self, end: HeldEnd) -> None:
        """Report its end."""
        self._exec_events = end.exec_events
        self.happened(end.events)
        if not self.future.done():  # events without an end
            self.lost(None, "its host reported no end")

    def lost(self, error: BaseException | None, note: str) -> None:
        """End it with its host.

        Args:
            error: the fatal exception of the allocation's job, if it had one.
            note: says what happened otherwise.
        """
        self.was_lost = True
        if self.future.done():
            return
        if not hasattr(error, "severity"):
            event = EventLogEvent.now(
                "exception", type="exec", severity=0, note=f"lost contact with its host: {note}"
            )
            error = JobException(event)
        self.future.set_exception(error)
        self.future._set_event(EventLogEvent.now("clean"))

    def declined(self) -> None:
        """Give it back: it becomes a job of its own."""
        if not self.future.done():
            self.future.set_exception(DeclinedError())

    # What the runner wants of its job (`JobControl`)

    def cancel(self, jobid: int, note: str) -> None:  # noqa: ARG002 - the interface's
        """End the task, not the allocation."""
        self.on_cancel(self, note)

    def kill(self, jobid: int, signum: int) -> None:  # noqa: ARG002
        """Send a signal to the task's ranks."""
        self.on_kill(self, signum)

    def set_urgency(self, jobid: int, urgency: int) -> None:  # noqa: ARG002
        """Become a job of its own, which has an urgency, unless it has an allocation already."""
        if not self.future.running():
            self.declined()

    def exec_events(self, jobid: int) -> list[dict[str, Any]]:
        """Return the task's exec eventlog, or that of the allocation if its host is lost."""
        return self.job.exec_events(jobid) if self.was_lost else list(self._exec_events)

    def job_usage(self, jobid: int) -> Usage | None:  # noqa: ARG002
        """Return what its ranks have used."""
        return usage_in(self._exec_events)

    def sweep(self, jobid: int, variable: str) -> None:
        """See `Backend`; a host leaves no processes as long as it lives."""
        if self.was_lost:
            self.job.sweep(jobid, variable)
