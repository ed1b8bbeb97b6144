"""Which manager has which task, whose ends are not on disk yet, and what becomes of lost tasks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Container
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.base import EngineResult
from flux_endpoint.engine.workers.backlog import TaskBacklog
from flux_endpoint.engine.workers.records import ManagerRecord, TaskEntry
from flux_endpoint.engine.workers.spool import EndHeader

log = logging.getLogger(__name__)

#: Sends frames to a manager, by its id.
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
        #: Tasks that run for a while already, and when each was started (seconds since the epoch).
        self.running: dict[str, float] = {}
        #: Tasks whose ends managers keep until these are on disk, and which manager.
        self._unsettled: dict[str, str] = {}

    def release(self, manager: ManagerRecord, task_id: str) -> TaskEntry | None:
        """A manager has a task no more; return it, if it had it."""
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
        """Leave tasks to others that a manager must not begin any more."""
        for task_id in task_ids:
            entry = self.release(manager, task_id)
            if entry is not None:
                self._waiting.leave(entry)

    # Ends

    def ended(self, manager: ManagerRecord, header: EndHeader, body: bytes) -> None:
        """A manager tells the end of a task, perhaps not for the first time."""
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
        """Deal with the end of a task; return whether it has to be kept until it is settled."""
        entry.started = header.get("began") or entry.started
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
        """Return whether a task's end was told by a manager and may not be on disk yet."""
        return task_id in self._unsettled

    def settle(self, task_ids: Collection[str]) -> None:
        """Have managers forget ends that are on disk."""
        of_managers: dict[str, list[bytes]] = {}
        for task_id in task_ids:
            manager_id = self._unsettled.pop(task_id, None)
            if manager_id is not None:
                of_managers.setdefault(manager_id, [b"safe"]).append(task_id.encode())
        for manager_id, frames in of_managers.items():
            self._send(manager_id, frames)

    # Managers that come again, and those that are gone

    def reconcile(self, manager: ManagerRecord, held: dict[str, Any]) -> list[str]:
        """Queue again what a broken connection has lost; return what nobody has given it."""
        there = {*held["waiting"], *held["running"], *held["ended"]}
        for task_id in manager.asked:
            if task_id in there:
                entry = manager.tasks.get(task_id)
                if entry is not None and entry.cancelled:  # that may not have arrived
                    self._send(manager.manager_id, [b"cancel", task_id.encode()])
                continue
            entry = self.release(manager, task_id)
            if entry is not None:
                logs.event(log, logging.WARNING, "task lost on its way, again", task=task_id)
                self._waiting.requeue(entry)
        manager.asked = []
        self.running |= {
            task_id: began for task_id, began in held["running"].items() if task_id in manager.tasks
        }
        return [each for each in there if each not in manager.tasks and each not in self._unsettled]

    def give(self, manager: ManagerRecord, entry: TaskEntry, began: float | None) -> None:
        """Take note that a manager of before a restart has a task."""
        manager.tasks[entry.task.task_id] = entry
        if began is not None:
            self.running[entry.task.task_id] = began
        if entry.cancelled:
            self._send(manager.manager_id, [b"cancel", entry.task.task_id.encode()])

    def keep_only(self, manager: ManagerRecord, task_ids: Container[str]) -> None:
        """Queue all tasks of a manager again but these."""
        self.returned(manager, [each for each in reversed(manager.tasks) if each not in task_ids])

    def give_back(self, manager: ManagerRecord, begun: Container[str] | None, reason: str) -> None:
        """Deal with what a manager held that is gone.

        Args:
            manager: which; its processes have ended.
            begun: the tasks that were begun, or may have been; `None`: that is not known. Tasks are
                started in the order in which they came, so no more than the first of them, one for
                each worker, can have been running then.
            reason: why those are lost.
        """
        if begun is None:
            begun = frozenset(list(manager.tasks)[: manager.workers])
        for task_id in reversed(list(manager.tasks)):
            entry = self.release(manager, task_id)
            assert entry is not None
            if task_id in begun:
                self._waiting.retry_or_fail(entry, reason)
            else:
                self._waiting.requeue(entry)
