"""Which manager has which task, whose ends are not on disk yet, and what becomes of lost tasks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Container
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.base import EngineResult
from flux_endpoint.engine.workers.backlog import TaskBacklog, TaskEntry
from flux_endpoint.engine.workers.manager_registry import ManagerRecord
from flux_endpoint.engine.workers.spool import EndHeader

log = logging.getLogger(__name__)

#: Sends a message to the manager with an id.
Send = Callable[[str, list[bytes]], None]


class TaskBook:
    """The tasks that managers have. Used by the pool's thread only.

    Args:
        waiting: the tasks that no manager has.
        send: sends a message to a manager.
    """

    def __init__(self, waiting: TaskBacklog, send: Send) -> None:
        self._waiting = waiting
        self._send = send
        #: Tasks that have been running for a while, with their starts (seconds since the epoch).
        self.running: dict[str, float] = {}
        #: Tasks whose ends a manager keeps until they are on disk, with that manager's id.
        self._unsettled: dict[str, str] = {}

    def release(self, manager: ManagerRecord, task_id: str) -> TaskEntry | None:
        """Remove a task from a manager; return it, or `None` if the manager did not have it."""
        entry = manager.tasks.pop(task_id, None)
        started = self.running.pop(task_id, None)
        if entry is not None:
            entry.started = started
        if not manager.tasks:
            manager.idle_since = time.monotonic()
        return entry

    def returned(self, manager: ManagerRecord, task_ids: Collection[str]) -> None:
        """Queue tasks again that a manager has not begun."""
        for task_id in task_ids:
            entry = self.release(manager, task_id)
            if entry is not None:
                self._waiting.requeue(entry)

    def late(self, manager: ManagerRecord, task_ids: Collection[str]) -> None:
        """Leave tasks to others whose `start_before` passed before a manager began them."""
        for task_id in task_ids:
            entry = self.release(manager, task_id)
            if entry is not None:
                self._waiting.leave(entry)

    # Ends of tasks

    def ended(self, manager: ManagerRecord, header: EndHeader, body: bytes) -> None:
        """Handle the end of a task as a manager reports it, perhaps not for the first time."""
        task_id = header["id"]
        entry = manager.tasks.get(task_id)
        if entry is not None and entry.formats == bool(header.get("format")):
            self.release(manager, task_id)
            if self.conclude(entry, header, body, manager.host):
                self._unsettled[task_id] = manager.manager_id
                return
        elif task_id in self._unsettled:
            return
        self._send(manager.manager_id, [b"safe", task_id.encode()])

    def conclude(self, entry: TaskEntry, header: EndHeader, body: bytes, host: str) -> bool:
        """Process a task's end; return whether it must be kept until it is settled."""
        entry.started = header.get("began") or entry.started
        entry.node = host
        match header.get("end", "result"):
            case "result":
                entry.on_result(EngineResult(entry.task.task_id, body))
                return not entry.formats
            case "cancelled":
                self._waiting.end_cancelled(entry)
                return True
            case _:
                reason = f"{body.decode(errors='replace')} on {host or 'its node'}"
                return not self._waiting.retry_or_fail(entry, reason)

    def is_unsettled(self, task_id: str) -> bool:
        """Return whether a manager has reported a task's end that may not be on disk yet."""
        return task_id in self._unsettled

    def settle(self, task_ids: Collection[str]) -> None:
        """Let managers discard ends that are on disk."""
        of_managers: dict[str, list[bytes]] = {}
        for task_id in task_ids:
            manager_id = self._unsettled.pop(task_id, None)
            if manager_id is not None:
                of_managers.setdefault(manager_id, [b"safe"]).append(task_id.encode())
        for manager_id, frames in of_managers.items():
            self._send(manager_id, frames)

    # Reconnected managers and lost managers

    def reconcile(self, manager: ManagerRecord, held: dict[str, Any]) -> list[str]:
        """Queue tasks again that a broken connection lost; return tasks for the manager to drop."""
        there = {*held["waiting"], *held["running"], *held["ended"]}
        for task_id in manager.asked:
            if task_id in there:
                entry = manager.tasks.get(task_id)
                if entry is not None and entry.cancelled:  # the cancellation may not have arrived
                    self._send(manager.manager_id, [b"cancel", task_id.encode()])
                continue
            entry = self.release(manager, task_id)
            if entry is not None:
                logs.event(log, logging.WARNING, "task lost in transit, retrying", task=task_id)
                self._waiting.requeue(entry)
        manager.asked = []
        self.running |= {
            task_id: began for task_id, began in held["running"].items() if task_id in manager.tasks
        }
        return [each for each in there if each not in manager.tasks and each not in self._unsettled]

    def give(self, manager: ManagerRecord, entry: TaskEntry, began: float | None) -> None:
        """Record that a recovered manager has a task."""
        manager.tasks[entry.task.task_id] = entry
        if began is not None:
            self.running[entry.task.task_id] = began
        if entry.cancelled:
            self._send(manager.manager_id, [b"cancel", entry.task.task_id.encode()])

    def keep_only(self, manager: ManagerRecord, task_ids: Container[str]) -> None:
        """Queue all tasks of a manager again, except these."""
        self.returned(manager, [each for each in reversed(manager.tasks) if each not in task_ids])

    def give_back(self, manager: ManagerRecord, begun: Container[str] | None, reason: str) -> None:
        """Handle the tasks of a manager that is gone.

        Args:
            manager: the manager; its processes have ended.
            begun: the tasks that have, or may have, begun; `None`: unknown. Tasks start in the
                order of their arrival, so at most the first ones, one per worker, can have been
                running.
            reason: why the running tasks are lost.
        """
        if begun is None:
            begun = frozenset(list(manager.tasks)[: manager.workers])
        for task_id in reversed(list(manager.tasks)):
            entry = self.release(manager, task_id)
            assert entry is not None
            entry.node = manager.host
            if task_id in begun:
                self._waiting.retry_or_fail(entry, reason)
            else:
                self._waiting.requeue(entry)
