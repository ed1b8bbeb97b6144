"""The tasks of a node that wait: those that no worker has, and those sent to workers ahead."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Collection
from typing import Any

#: Header and buffer of a task.
Task = tuple[dict[str, Any], bytes]

#: A worker is sent as many tasks as take this many seconds.
SHORT = 0.02
#: The most tasks that a worker is sent.
MAX_AHEAD = 32
#: The most tasks that a manager holds, unless its workers are more than half as many.
_MAX_HELD = 4096


def tasks_ahead(seconds: float) -> int:
    """Return the most tasks of a worker: one, or more if tasks take so few `seconds`."""
    return max(1, min(MAX_AHEAD, int(SHORT / max(seconds, 1e-6))))


def most_held(workers: int, ahead: int = MAX_AHEAD) -> int:
    """Return the most tasks that a manager holds: as many as its workers, and again as many.

    Args:
        workers: number of its workers.
        ahead: the most tasks of each.
    """
    return min(2 * ahead * workers, max(2 * workers, _MAX_HELD))


class NodeQueue:
    """Tasks in the order in which they should start."""

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()
        #: The earliest `start_before` of the tasks, in seconds since the epoch.
        self.late_at = math.inf

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def task_ids(self) -> list[str]:
        """The ids of the tasks."""
        return [str(header["id"]) for header, _ in self._tasks]

    @property
    def next_size(self) -> int:
        """Size in bytes of the next task's buffer."""
        return len(self._tasks[0][1])

    def add(self, task: Task) -> None:
        """Append a task."""
        self._tasks.append(task)
        self._note(task)

    def put_back(self, task: Task) -> None:
        """Put a task first."""
        self._tasks.appendleft(task)
        self._note(task)

    def _note(self, task: Task) -> None:
        self.late_at = min(self.late_at, task[0].get("before", math.inf))

    def take(self) -> Task:
        """Remove and return the next task."""
        return self._tasks.popleft()

    def take_last(self, count: int) -> list[str]:
        """Remove at most `count` tasks, the last first; return their ids."""
        return [str(self._tasks.pop()[0]["id"]) for _ in range(min(count, len(self._tasks)))]

    def take_late(self, now: float) -> list[str]:
        """Remove the tasks whose `start_before` has passed; return their ids."""
        late = {str(h["id"]) for h, _ in self._tasks if h.get("before", math.inf) <= now}
        self.remove(late)
        moments = (header.get("before", math.inf) for header, _ in self._tasks)
        self.late_at = min(moments, default=math.inf)
        return list(late)

    def remove(self, task_ids: Collection[str]) -> bool:
        """Remove tasks; return whether there were any."""
        before = len(self._tasks)
        self._tasks = deque(task for task in self._tasks if task[0]["id"] not in task_ids)
        return len(self._tasks) < before


class Claims:
    """A counter shared by manager and worker: how many of the sent tasks may still start.

    The worker takes one claim before each task, and skips the task if there is none. The manager
    takes all remaining claims when it wants tasks back. The kernel makes each claim go to only one
    of them.

    Args:
        descriptor: an existing counter; by default a new one is created.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = (
            os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            if descriptor is None
            else descriptor
        )

    def fileno(self) -> int:
        """Return the descriptor, for passing it on."""
        return self._descriptor

    def add(self, count: int) -> bool:
        """Allow `count` more tasks; return False if a task has raised the counter too far."""
        try:
            os.eventfd_write(self._descriptor, count)
        except BlockingIOError:
            return False
        return True

    def take(self) -> bool:
        """Take one claim; return whether there was one."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return False
        return True

    def take_all(self, most: int) -> int:
        """Take the remaining claims, at most `most`; return their number."""
        count = 0
        while count < most and self.take():
            count += 1
        return count

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)
