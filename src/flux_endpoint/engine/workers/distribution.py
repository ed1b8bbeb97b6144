"""Distributes waiting tasks to managers, and takes them back for idle workers elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from flux_endpoint.engine.workers.backlog import TaskBacklog, TaskEntry
from flux_endpoint.engine.workers.book import ManagerRecord, Send
from flux_endpoint.engine.workers.states import ManagerState
from flux_endpoint.protocol.envelope import compact_json

#: The most tasks in one message to a manager.
_BATCH = 128
#: Seconds without a result after which a node's waiting tasks may move to other nodes.
_STUCK_AFTER = 0.1


class TaskDistributor:
    """Decides which manager gets which task. Used by the pool's thread only.

    Args:
        managers: all managers by id.
        waiting: the tasks that no manager has.
        send: sends a message to a manager.
    """

    def __init__(
        self, managers: dict[str, ManagerRecord], waiting: TaskBacklog, send: Send
    ) -> None:
        self._by_id = managers
        self._waiting = waiting
        self._send = send

    def assign(self) -> None:
        """Send waiting tasks to managers that have room for them."""
        if not self._waiting:
            return
        ready = [m for m in self._managers if m.state is ManagerState.READY]
        # First give every worker one task, starting with managers that stay anyway or are busy, so
        # that the others may be given back.
        for manager in sorted(ready, key=lambda m: (not m.permanent, m.free)):
            self._send_tasks(manager, manager.free)
        # Then send tasks ahead to where they may wait.
        workers = sum(manager.workers for manager in ready)
        for manager in sorted(ready, key=lambda m: len(m.tasks) / m.workers):
            share = math.ceil(len(self._waiting) * manager.workers / workers)
            self._send_tasks(manager, min(manager.room, share))
            workers -= manager.workers

    def _send_tasks(self, manager: ManagerRecord, count: int) -> None:
        while count > 0 and self._waiting:
            headers: list[dict[str, Any]] = []
            buffers: list[bytes] = []
            for _ in range(min(count, _BATCH, len(self._waiting))):
                entry = self._waiting.take()
                headers.append(_header_of(entry))
                buffers.append(entry.task.buffer.encode())
                if not manager.tasks:
                    manager.activity.quiet_since = time.monotonic()
                manager.tasks[entry.task.task_id] = entry
                count -= 1
            self._send(manager.manager_id, [b"tasks", compact_json(headers), *buffers])

    def balance(self, now: float) -> None:
        """Take waiting tasks back from one node while workers of another are idle.

        Args:
            now: monotonic time.
        """
        wanted = sum(m.free for m in self._managers)
        if self._waiting or not wanted:
            return
        for manager in self._stuck(now):
            if wanted > 0 and manager.state is ManagerState.READY:
                count = min(wanted, manager.surplus)
                self.take_back(manager, count)
                wanted -= count

    def recall(self, now: float) -> None:
        """Take all waiting tasks back from managers that should end."""
        for manager in self._stuck(now):
            if manager.state is ManagerState.DRAINING:
                self.take_back(manager, len(manager.tasks))

    def take_back(self, manager: ManagerRecord, count: int) -> None:
        """Ask a manager to return tasks that it has not started."""
        self._send(manager.manager_id, [b"return", b"%d" % count])
        manager.activity.quiet_since = time.monotonic()

    def unserved(self, now: float) -> int:
        """Return the number of tasks that find no worker."""
        return len(self._waiting) + sum(manager.surplus for manager in self._stuck(now))

    def moments(self, now: float) -> Iterator[float]:
        """Yield the monotonic times after `now` at which tasks may be taken back."""
        stuck = (m.activity.quiet_since + _STUCK_AFTER for m in self._managers if m.surplus)
        yield from (moment for moment in stuck if moment > now)

    def _stuck(self, now: float) -> list[ManagerRecord]:
        return [
            m for m in self._managers if m.surplus and now >= m.activity.quiet_since + _STUCK_AFTER
        ]

    @property
    def _managers(self) -> list[ManagerRecord]:
        return list(self._by_id.values())


def _header_of(entry: TaskEntry) -> dict[str, Any]:
    task = entry.task
    header: dict[str, Any] = {"id": task.task_id}
    if task.result_serializers:
        header["rs"] = task.result_serializers
    if entry.formats:
        header["format"] = True
    if entry.attempts:
        header["attempt"] = len(entry.attempts) + 1
    if task.start_before is not None:
        header["before"] = task.start_before
    return header
