"""The tasks of a node that no worker has begun."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from typing import Any

#: Header and buffer of a task.
Task = tuple[dict[str, Any], bytes]


class NodeQueue:
    """Tasks in the order in which they are to be started."""

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()
        #: When the first of them must not be started any more, in seconds since the epoch.
        self.late_at = math.inf

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def task_ids(self) -> list[str]:
        """The ids of the tasks."""
        return [str(header["id"]) for header, _ in self._tasks]

    @property
    def next_size(self) -> int:
        """Bytes of the next task's buffer."""
        return len(self._tasks[0][1])

    def add(self, task: Task) -> None:
        """Queue a task behind all others."""
        self._tasks.append(task)
        self._note(task)

    def put_back(self, task: Task) -> None:
        """Queue a task before all others."""
        self._tasks.appendleft(task)
        self._note(task)

    def _note(self, task: Task) -> None:
        self.late_at = min(self.late_at, task[0].get("before", math.inf))

    def take(self) -> Task:
        """Take the next task out."""
        return self._tasks.popleft()

    def take_last(self, count: int) -> list[str]:
        """Take at most so many tasks out, the last first; return their ids."""
        return [str(self._tasks.pop()[0]["id"]) for _ in range(min(count, len(self._tasks)))]

    def take_late(self, now: float) -> list[str]:
        """Take the tasks out that must not be started any more; return their ids."""
        late = {str(h["id"]) for h, _ in self._tasks if h.get("before", math.inf) <= now}
        self.remove(late)
        moments = (header.get("before", math.inf) for header, _ in self._tasks)
        self.late_at = min(moments, default=math.inf)
        return list(late)

    def remove(self, task_ids: Collection[str]) -> bool:
        """Take tasks out; return whether there were any."""
        before = len(self._tasks)
        self._tasks = deque(task for task in self._tasks if task[0]["id"] not in task_ids)
        return len(self._tasks) < before
