"""Matches submitted tasks with the managers of an earlier pool that hold them or their ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.workers.backlog import TaskBacklog, TaskEntry
from flux_endpoint.engine.workers.book import ManagerRecord, Send, TaskBook
from flux_endpoint.engine.workers.recovery import Recovery
from flux_endpoint.engine.workers.spool import SpooledEnd

log = logging.getLogger(__name__)


class Handover:
    """Assigns tasks to the recovered managers that hold them. Used by the pool's thread only.

    Args:
        managers: all managers by id.
        book: the tasks that managers have.
        waiting: the tasks that no manager has.
        send: sends a message to a manager.
        on_found: called with the tasks that recovered managers hold, once all have reported.
    """

    def __init__(
        self,
        managers: dict[str, ManagerRecord],
        book: TaskBook,
        waiting: TaskBacklog,
        send: Send,
        on_found: Callable[[set[str]], None],
    ) -> None:
        self._managers = managers
        self._book = book
        self._waiting = waiting
        self._send = send
        self._on_found = on_found
        self._recovery = Recovery((), (), 0.0)
        #: Managers that may start no task before all earlier tasks are submitted, and the tasks
        #: that each should drop then.
        self._awaiting_go: dict[str, list[str]] = {}

    def begin(self, awaited: Iterable[str], ends: Iterable[SpooledEnd]) -> None:
        """Wait for the reports of recovered managers; `ends` are on disk already."""
        self._recovery = Recovery(awaited, ends, time.monotonic())

    @property
    def is_pending(self) -> bool:
        """Whether no task may be sent to a manager yet.

        Reports are missing, or managers have not been told yet which of their waiting tasks to
        drop: they would drop a task that was sent to them again, too.
        """
        return self._recovery.is_pending or bool(self._awaiting_go)

    @property
    def due(self) -> float:
        """Monotonic time at which managers without a report are given up."""
        return self._recovery.due

    def silent(self) -> list[ManagerRecord]:
        """Return the managers to give up now."""
        self._recovery.due = float("inf")
        return [self._managers[each] for each in self._recovery.awaited & self._managers.keys()]

    def awaits_go(self, manager: ManagerRecord) -> bool:
        """Return whether a manager waits until all earlier tasks are submitted."""
        return manager.manager_id in self._awaiting_go

    def reported(self, manager: ManagerRecord, held: dict[str, Any]) -> None:
        """Process a recovered manager's report of the tasks that it holds."""
        self._awaiting_go[manager.manager_id] = held["waiting"]
        holdings = {**dict.fromkeys(held["ended"]), **held["running"]}
        logs.event(
            log,
            logging.INFO,
            "workers taken over",
            host=manager.host,
            running=len(held["running"]),
            ended=len(held["ended"]),
        )
        self._recovery.reported(manager.manager_id, holdings)
        for entry in self._waiting.extract(holdings):
            self.take(entry)
        self.tell_found()
        if self._recovery.is_complete:
            self.complete()

    def tell_found(self) -> None:
        """Report the tasks that recovered managers hold, once all have reported."""
        if not self._recovery.is_pending:
            self._on_found(self._recovery.held)

    def take(self, entry: TaskEntry) -> None:
        """Queue a task, unless a manager has it or its end is on disk."""
        task_id = entry.task.task_id
        if (holding := self._recovery.holding(task_id)) is not None:
            self._book.give(self._managers[holding.manager_id], entry, holding.began)
        elif (end := self._recovery.end(task_id)) is not None:
            self._conclude(entry, end)
        else:
            self._waiting.append(entry)

    def _conclude(self, entry: TaskEntry, end: SpooledEnd) -> None:
        try:
            body = end.body()
        except OSError as error:
            logs.event(log, logging.ERROR, "a result on disk can't be read", reason=error)
            self._waiting.requeue(entry)
            return
        if entry.formats != bool(end.header.get("format")):
            self._waiting.requeue(entry)
        elif self._book.conclude(entry, end.header, body, ""):
            return  # kept until it is settled
        self._recovery.settle([entry.task.task_id])

    def complete(self) -> None:
        """Discard what was not submitted again, now that all earlier tasks have been."""
        for manager_id, task_ids in self._recovery.complete().items():
            self._awaiting_go[manager_id] += task_ids
        for manager_id, unwanted in self._awaiting_go.items():
            self.go(manager_id, unwanted)
        self._awaiting_go.clear()

    def settle(self, task_ids: Collection[str]) -> None:
        """Discard ends that the submitter has on disk."""
        self._book.settle(task_ids)
        self._recovery.settle(task_ids)

    def gone(self, manager: ManagerRecord, ends: list[SpooledEnd]) -> None:
        """Take the ends that a lost manager has left on disk."""
        self._awaiting_go.pop(manager.manager_id, None)
        self._recovery.gone(manager.manager_id, ends)
        for task_id in [end.header["id"] for end in ends]:
            if self._book.is_unsettled(task_id):
                self._recovery.end(task_id)  # already reported; kept until it is settled
            elif (entry := self._book.release(manager, task_id)) is not None:
                left = self._recovery.end(task_id)
                assert left is not None
                self._conclude(entry, left)
        for entry in self._waiting.extract(self._recovery.held):
            self.take(entry)
        self.tell_found()
        if self._recovery.is_complete:
            self.complete()

    def go(self, manager_id: str, unwanted: Collection[str]) -> None:
        """Allow a manager to start tasks, and let it drop the `unwanted` ones."""
        self._send(manager_id, [b"go", *(task_id.encode() for task_id in unwanted)])
