"""The tasks of a node that no worker has begun."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from typing import Any

#: Header and buffer of a task.
Task = tuple[dict[str, Any], bytes]


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
