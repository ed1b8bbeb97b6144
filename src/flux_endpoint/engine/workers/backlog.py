"""Tasks that wait for a worker, in the pool and on a node, and the ends of those that get none."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from flux_endpoint.engine import results
from flux_endpoint.engine.attempts import failure_text, overdue
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.engine.workers.frames import Task
from flux_endpoint.protocol.envelope import ATTEMPTS, NODE
from flux_endpoint.protocol.resources import DEFAULT_URGENCY, HELD
from flux_endpoint.protocol.states import ErrorCode, TaskState

#: A worker is sent as many tasks as take this many seconds.
SHORT = 0.08
#: The most tasks that a worker is sent.
MAX_AHEAD = 32
#: By how much one task can increase `TaskTimes.least`.
_MOST_GROWTH = 1.1
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


class TaskTimes:
    """How long the tasks of a node's workers take, in seconds.

    A task that the machine delays, because others use the CPU, appears long for once. `usual` is
    then too long, so that fewer tasks are sent ahead, and `least` is not, so that nobody relies on
    workers being busy for long.
    """

    def __init__(self) -> None:
        #: Weighted towards recent tasks: one long task immediately stops sending ahead.
        self.usual = 1.0
        #: Follows a shorter task at once, and longer ones slowly.
        self.least = 1.0
        #: Share of the next task in `usual`; the first one replaces the guess.
        self._weight = 1.0

    def add(self, seconds: float) -> None:
        """Take the duration of another task."""
        self.usual += (min(seconds, 1.0) - self.usual) * self._weight
        self.least = min(seconds, self.least * _MOST_GROWTH)
        self._weight = 0.2


@dataclass(eq=False)
class TaskEntry:
    """A task that has not ended."""

    task: EngineTask
    on_result: Callable[[EngineResult], None]
    #: 0 (held) to 31; see `EngineTask`.
    urgency: int = DEFAULT_URGENCY
    #: Whether a worker only formats its command.
    formats: bool = False
    #: Why each earlier attempt has failed.
    attempts: list[str] = field(default_factory=list)
    cancelled: bool = False
    #: Start of an attempt that ended without a result, in seconds since the epoch.
    started: float | None = None
    #: Host name of the node on which that attempt ran.
    node: str = ""
    #: What that attempt has printed, as entries of a result's details.
    printed: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.task.urgency is not None and not self.formats:
            self.urgency = self.task.urgency

    def header(self) -> dict[str, Any]:
        """Return what a manager and its worker get of it besides its buffer."""
        task = self.task
        header: dict[str, Any] = {"id": task.task_id}
        if task.result_serializers:
            header["rs"] = task.result_serializers
        if self.formats:
            header["format"] = True
        if self.attempts:
            header["attempt"] = len(self.attempts) + 1
        if task.start_before is not None:
            header["before"] = task.start_before
        if task.options is not None and not self.formats:
            if task.options.time_limit:
                header["limit"] = task.options.time_limit
            if process := task.options.process:
                header["process"] = process
        return header


class UrgencyQueue:
    """Waiting tasks by urgency, and of one urgency in their order; held ones wait apart.

    Almost all tasks have the default, so that one costs what a plain queue does.
    """

    def __init__(self) -> None:
        self._usual: deque[TaskEntry] = deque()
        #: Tasks of other urgencies; none of these queues is empty.
        self._others: dict[int, deque[TaskEntry]] = {}

    def __len__(self) -> int:
        """Return the number of tasks that are not held."""
        return len(self._usual) + (self._prior if self._others else 0)

    @property
    def _prior(self) -> int:
        return sum(len(tasks) for urgency, tasks in self._others.items() if urgency != HELD)

    def __iter__(self) -> Iterator[TaskEntry]:
        """Yield all tasks, held ones last."""
        for urgency in sorted({*self._others, DEFAULT_URGENCY}, reverse=True):
            yield from self._queue(urgency)

    @property
    def held(self) -> int:
        """Number of held tasks."""
        return len(self._others.get(HELD, ()))

    def append(self, entry: TaskEntry) -> None:
        """Append a task to those of its urgency."""
        self._queue(entry.urgency).append(entry)

    def appendleft(self, entry: TaskEntry) -> None:
        """Put a task before those of its urgency."""
        self._queue(entry.urgency).appendleft(entry)

    def popleft(self) -> TaskEntry:
        """Remove and return the first task that is not held."""
        highest = max(self._others, default=HELD)
        if highest > DEFAULT_URGENCY or not self._usual:
            entry = self._others[highest].popleft()
            self._drop_empty(highest)
            return entry
        return self._usual.popleft()

    def remove(self, entry: TaskEntry) -> None:
        """Remove a task."""
        self._queue(entry.urgency).remove(entry)
        self._drop_empty(entry.urgency)

    def discard(self, task_ids: Container[str]) -> None:
        """Remove the tasks with these ids."""
        for urgency in (*self._others, DEFAULT_URGENCY):
            queue = self._queue(urgency)
            left = [each for each in queue if each.task.task_id not in task_ids]
            queue.clear()
            queue.extend(left)
            self._drop_empty(urgency)

    def _queue(self, urgency: int) -> deque[TaskEntry]:
        if urgency == DEFAULT_URGENCY:
            return self._usual
        return self._others.setdefault(urgency, deque())

    def _drop_empty(self, urgency: int) -> None:
        if urgency in self._others and not self._others[urgency]:
            del self._others[urgency]


class TaskBacklog:
    """The tasks that no manager has, in the order in which they should run.

    Args:
        retries: how often a task is retried that lost its worker through no fault of its own.
        on_left: called with the id of each task that is left to others, and its failed attempts.
    """

    def __init__(self, retries: int, on_left: Callable[[str, list[str]], None]) -> None:
        self._entries = UrgencyQueue()
        self._retries = retries
        self._on_left = on_left
        #: The earliest `start_before` of the tasks, in seconds since the epoch.
        self.late_at = math.inf
        self._closed = False

    def __len__(self) -> int:
        """Return the number of tasks that may start."""
        return len(self._entries)

    @property
    def held(self) -> int:
        """Number of tasks that wait until somebody releases them."""
        return self._entries.held

    def set_urgency(self, entry: TaskEntry, urgency: int) -> None:
        """Set the urgency of a waiting task; it comes after the others of that urgency."""
        if urgency != entry.urgency:
            self._entries.remove(entry)
            entry.urgency = urgency
            self._entries.append(entry)

    def append(self, entry: TaskEntry) -> None:
        """Append a task."""
        self._note_deadline(entry)
        self._entries.append(entry)

    def _note_deadline(self, entry: TaskEntry) -> None:
        if entry.task.start_before is not None:
            self.late_at = min(self.late_at, entry.task.start_before)

    def take(self) -> TaskEntry:
        """Remove and return the next task."""
        return self._entries.popleft()

    def requeue(self, entry: TaskEntry) -> None:
        """Put a task first that was sent to a manager and not started."""
        entry.started = None
        if entry.cancelled:
            self.end_cancelled(entry)
        else:
            self._note_deadline(entry)
            self._entries.appendleft(entry)

    def retry_or_fail(self, entry: TaskEntry, reason: str) -> bool:
        """Put a task first that was lost while it ran, or fail it after too many attempts.

        Returns:
            Whether it is retried.
        """
        if entry.cancelled:
            self.end_cancelled(entry)
            return False
        entry.attempts.append(reason)
        if len(entry.attempts) <= self._retries:
            entry.started = entry.printed = None
            self._note_deadline(entry)
            self._entries.appendleft(entry)
            return True
        _fail(entry, ErrorCode.WORKER_LOST, failure_text("WorkerLost", entry.attempts))
        return False

    def find(self, task_id: str) -> TaskEntry | None:
        """Return a waiting task, or `None`."""
        return next((each for each in self._entries if each.task.task_id == task_id), None)

    def extract(self, task_ids: Container[str]) -> list[TaskEntry]:
        """Remove and return the tasks with these ids, which managers have."""
        found = [each for each in self._entries if each.task.task_id in task_ids]
        if found:
            self._entries.discard(task_ids)
        return found

    def cancel(self, entry: TaskEntry) -> None:
        """Remove a waiting task and end it as cancelled."""
        self._entries.remove(entry)
        self.end_cancelled(entry)

    def end_cancelled(self, entry: TaskEntry) -> None:
        """End a task as cancelled that no manager has any more."""
        _fail(entry, ErrorCode.CANCELLED, "TaskCancelled: the task was ended on request")

    def end_overdue(self, entry: TaskEntry, limit: float) -> None:
        """End a task that has run for longer than its limit (s), and that no manager has."""
        text, details = overdue(limit)
        _fail(entry, ErrorCode.REMOTE_EXECUTION, text, details)

    def fail_all(self, text: str) -> None:
        """Fail all tasks that may start: there will be no workers."""
        while self._entries:
            _fail(self._entries.popleft(), ErrorCode.WORKER_LOST, text)

    def leave(self, entry: TaskEntry) -> None:
        """Leave a task to others that no manager has any more."""
        if entry.cancelled:
            self.end_cancelled(entry)
        else:
            self._on_left(entry.task.task_id, [] if entry.formats else entry.attempts)

    def leave_late(self, now: float) -> None:
        """Leave the tasks to others whose `start_before` has passed."""
        if self._closed:
            self.leave_all()
        if now < self.late_at:
            return
        late = [e for e in self._entries if (e.task.start_before or math.inf) <= now]
        for entry in late:
            self._entries.remove(entry)
            self.leave(entry)
        moments = (e.task.start_before or math.inf for e in self._entries)
        self.late_at = min(moments, default=math.inf)

    def close(self) -> None:
        """From now on, have `leave_late` leave every new task to others."""
        self._closed = True

    def leave_all(self) -> None:
        """Leave all waiting tasks to others, also those that are held."""
        entries, self._entries = list(self._entries), UrgencyQueue()
        for entry in entries:
            self.leave(entry)


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


def _fail(entry: TaskEntry, code: ErrorCode, text: str, more: dict[str, Any] | None = None) -> None:
    task_id, statuses = entry.task.task_id, []
    if entry.started is not None:
        statuses = [
            results.transition(TaskState.EXEC_START, moment=entry.started),
            results.transition(TaskState.EXEC_END),
        ]
    details: dict[str, Any] = {**(more or {})}
    if entry.started is not None and entry.node:
        details[NODE] = entry.node
    # A lost attempt is among those that failed, one that was ended is not.
    attempts = len(entry.attempts) + (entry.started is not None and code != ErrorCode.WORKER_LOST)
    if attempts > 1:
        details[ATTEMPTS] = attempts
    details |= entry.printed or {}
    body = results.failure(task_id, code, text, details=details or None, statuses=statuses)
    entry.on_result(EngineResult(task_id, body))
