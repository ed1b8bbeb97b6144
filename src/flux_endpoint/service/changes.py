"""Changes that the service makes or learns of, for its metrics and its live page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a task ended, in metrics and on the page."""

    SUCCESS = "success"
    FAILED = "failed"
    #: Ended on request.
    CANCELLED = "cancelled"
    #: Its worker, job or endpoint was lost.
    LOST = "lost"


@dataclass(frozen=True)
class ReportedEnd:
    """The end of a task. Times are in seconds since the epoch.

    Attributes:
        owner_id: id of its user.
        outcome: how it ended.
        submitted: when the service stored it.
        started: when it began to run, as its endpoint says; `None`: unknown, or it never ran.
        stopped: when it ceased to run, likewise.
        ended: when the service received its result.
        size: bytes of its result.
        replaces: whether it replaces a failure that the service had presumed and reported.
        task_id: its id.
        printed: length of the output that is kept with its result, in characters.
    """

    owner_id: str
    outcome: Outcome
    submitted: float
    started: float | None
    stopped: float | None
    ended: float
    size: int
    replaces: bool = False
    task_id: str = ""
    printed: int = 0


class ChangeListener:
    """Is told of changes, after they are committed, on the thread that made them.

    A method must return at once and raise nothing. By default it ignores the change.
    """

    def tasks_submitted(self, owner_id: str, count: int) -> None:
        """A user's submission was stored.

        Args:
            owner_id: id of the user.
            count: number of its tasks.
        """

    def tasks_ended(self, ends: Sequence[ReportedEnd]) -> None:
        """Results were stored."""

    def events_stored(self, owner_ids: Collection[str]) -> None:
        """Job events were stored; `owner_ids` are the users of their tasks."""

    def output_arrived(self, task_id: str, streams: dict[str, Any]) -> None:
        """A running task has printed something, and somebody follows that.

        Args:
            task_id: the task.
            streams: as its endpoint has sent them; see `job_events.OUTPUT_EVENT`.
        """

    def reports_stored(self, endpoint_ids: Collection[str]) -> None:
        """Status reports of endpoints were stored."""

    def endpoints_changed(self) -> None:
        """An endpoint was registered or deleted."""

    def broker_changed(self) -> None:
        """The broker was lost or found, or raised or cleared an alarm."""


class Changes(ChangeListener):
    """Passes changes on to several listeners. Safe to use from several threads.

    Args:
        listeners: get the changes.
    """

    def __init__(self, *listeners: ChangeListener) -> None:
        self._listeners = listeners

    def tasks_submitted(self, owner_id: str, count: int) -> None:
        """See `ChangeListener`."""
        for each in self._listeners:
            each.tasks_submitted(owner_id, count)

    def tasks_ended(self, ends: Sequence[ReportedEnd]) -> None:
        """See `ChangeListener`."""
        for each in self._listeners:
            each.tasks_ended(ends)

    def events_stored(self, owner_ids: Collection[str]) -> None:
        """See `ChangeListener`."""
        for each in self._listeners:
            each.events_stored(owner_ids)

    def output_arrived(self, task_id: str, streams: dict[str, Any]) -> None:
        """See `ChangeListener`."""
        for each in self._listeners:
            each.output_arrived(task_id, streams)

    def reports_stored(self, endpoint_ids: Collection[str]) -> None:
        """See `ChangeListener`."""
        for each in self._listeners:
            each.reports_stored(endpoint_ids)

    def endpoints_changed(self) -> None:
        """See `ChangeListener`."""
        for each in self._listeners:
            each.endpoints_changed()

    def broker_changed(self) -> None:
        """See `ChangeListener`."""
        for each in self._listeners:
            each.broker_changed()
