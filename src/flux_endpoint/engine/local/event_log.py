"""Events of jobs in the format of Flux's eventlogs (RFC 18, RFC 21)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from flux_endpoint.usage import Usage

#: Name of an execution event with what a task that has exited has used; its context has the fields
#: of `Usage`.
TASK_USAGE = "shell.task-usage"


class EventLogEvent(dict[str, Any]):
    """One entry of an eventlog: a dictionary with `name`, `timestamp` and `context`."""

    @classmethod
    def now(cls, name: str, **context: Any) -> EventLogEvent:
        """Return an event with the current time."""
        return cls(timestamp=time.time(), name=name, context=context)

    @property
    def name(self) -> str:
        """The event's name."""
        return str(self["name"])

    @property
    def timestamp(self) -> float:
        """Seconds since the epoch."""
        return float(self["timestamp"])

    @property
    def context(self) -> dict[str, Any]:
        """Details, with the keys that RFC 21 defines for the event."""
        context: dict[str, Any] = self.get("context", {})
        return context

    def __str__(self) -> str:
        return f"{self.timestamp:.5f}: {self.name} {self.context}"


class JobException(Exception):  # noqa: N818 - Flux's name for it
    """A fatal `exception` event of a job, as `flux.job.JobException`.

    Attributes:
        timestamp: seconds since the epoch.
        type: `alloc`, `cancel`, `exec`, `timeout`, or the type that someone raised.
        note: explanation for people.
        severity: 0, fatal.
    """

    def __init__(self, event: EventLogEvent) -> None:
        self.timestamp: float = event.timestamp
        self.type: str = event.context["type"]
        self.note: str = event.context["note"]
        self.severity: int = event.context["severity"]
        super().__init__()

    def __str__(self) -> str:
        return f"job.exception: type={self.type}: {self.note}"


def usage_in(exec_events: Iterable[Mapping[str, Any]]) -> Usage | None:
    """Return what all tasks of a job have used, by its exec eventlog; `None`: it does not say."""
    events = (event for event in exec_events if event["name"] == TASK_USAGE)
    return Usage.total(Usage(**event["context"]) for event in events)
