"""The managers and their tasks: which manager gets which task, and what becomes of lost ones."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.backend import JobFuture
from flux_endpoint.engine.base import EngineResult
from flux_endpoint.engine.demand import Amount
from flux_endpoint.engine.outcome import error_of, has_timed_out, was_cancelled
from flux_endpoint.engine.workers.backlog import TaskBacklog, TaskEntry, most_held, tasks_ahead
from flux_endpoint.engine.workers.frames import combined, divided
from flux_endpoint.engine.workers.spool import EndHeader
from flux_endpoint.engine.workers.states import MANAGER_STATES, ManagerChange, ManagerState
from flux_endpoint.protocol.envelope import compact_json
from flux_endpoint.protocol.resources import HELD

log = logging.getLogger(__name__)

#: The most tasks in one message to a manager.
_BATCH = 128
#: Seconds without a result after which a node's waiting tasks may move to other nodes.
_STUCK_AFTER = 0.1

#: Sends a message to the manager with an id.
Send = Callable[[str, list[bytes]], None]


@dataclass
class StartTimes:
    """Monotonic times of a manager's start, as far as it has come.

    Attributes:
        submitted: its job was submitted.
        eligible: its job waited for resources only.
        allocated: its job had its resources.
        greeted: the manager came up.
    """

    submitted: float
    eligible: float = math.inf
    allocated: float | None = None
    greeted: float | None = None


@dataclass
class Activity:
    """How a manager's tasks move on.

    Attributes:
        task_seconds: how long its tasks usually take.
        least_seconds: how long they take at least.
        idle_since: monotonic time at which it had no task any more.
        quiet_since: monotonic time of its latest result, or of a later request to return tasks.
    """

    task_seconds: float = 1.0
    least_seconds: float = 0.0
    idle_since: float = 0.0
    quiet_since: float = 0.0


@dataclass
class Inquiry:
    """The question which tasks a manager holds, on each of its connections.

    Attributes:
        number: identifies it; empty: it is answered.
        tasks: the tasks that the manager held when it was asked.
    """

    number: bytes = b""
    tasks: list[str] = field(default_factory=list)

    def ask(self, tasks: Collection[str]) -> bytes:
        """Begin a question, and return its number."""
        self.number, self.tasks = os.urandom(8), list(tasks)
        return self.number

    def close(self) -> list[str]:
        """Record the answer; return the tasks that it should name."""
        tasks, self.number, self.tasks = self.tasks, b"", []
        return tasks


@dataclass
class ManagerEnd:
    """The end of a manager, as far as it is known.

    Attributes:
        ran: set when it said that it ends: its running tasks then, with their starts.
        is_clean: whether its job has left no processes, as far as Flux knows.
        why: why its running tasks are lost.
        dead_at: monotonic time at which it counts as dead if silent.
    """

    ran: dict[str, float] | None = None
    is_clean: bool = False
    why: str = ""
    dead_at: float = math.inf


@dataclass(eq=False)
class ManagerRecord:
    """A manager and the tasks that it holds."""

    manager_id: str
    workers: int
    job: JobFuture
    times: StartTimes
    #: Whether it stays when idle.
    permanent: bool = False
    #: Its resources on its node.
    amount: Amount = field(default_factory=Amount)
    #: Whether its configuration is the present one; else it gets no new tasks.
    is_current: bool = True
    state: ManagerState = ManagerState.STARTING
    #: Its node's name, if the scheduler reported it.
    node: str = ""
    host: str = ""
    tasks: dict[str, TaskEntry] = field(default_factory=dict)
    activity: Activity = field(default_factory=Activity)
    inquiry: Inquiry = field(default_factory=Inquiry)
    end: ManagerEnd = field(default_factory=ManagerEnd)

    def change(self, event: ManagerChange) -> None:
        """Apply an event; one without a transition in this state changes nothing."""
        self.state = MANAGER_STATES.after(self.state, event)

    @property
    def has_come(self) -> bool:
        """Whether it came up, as far as is known."""
        return self.times.greeted is not None or self.state is ManagerState.FOUND

    @property
    def is_known_dead(self) -> bool:
        """Whether Flux has ended its processes; on a node that Flux has lost, this is unknown."""
        error = error_of(self.job) if self.job.done() else None
        return self.end.is_clean and (was_cancelled(error) or has_timed_out(error))

    @property
    def place(self) -> str:
        """Its node, as far as it is known."""
        return self.node or self.host or self.manager_id

    @property
    def room(self) -> int:
        """Number of further tasks that it may hold."""
        return most_held(self.workers, tasks_ahead(self.activity.task_seconds)) - len(self.tasks)

    @property
    def free(self) -> int:
        """Number of its idle workers."""
        return max(0, self.workers - len(self.tasks)) if self.state is ManagerState.READY else 0

    @property
    def surplus(self) -> int:
        """Number of its tasks that wait for a worker."""
        if not self.state.is_serving:
            return 0
        return max(0, len(self.tasks) - self.workers)

    @property
    def reserve(self) -> float:
        """The least seconds for which its workers have tasks."""
        return self.surplus / self.workers * self.activity.least_seconds


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
            manager.activity.idle_since = time.monotonic()
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

    def take_ends(self, manager: ManagerRecord, parts: list[bytes]) -> None:
        """Handle a manager's message `ends`; see `messages`."""
        report = json.loads(parts[0])
        manager.activity.task_seconds = report["seconds"]
        manager.activity.least_seconds = report.get("least", 0.0)
        manager.activity.quiet_since = time.monotonic()
        # Managers of an earlier release have a frame for each body.
        bodies = divided(report["sizes"], parts[1:]) if "sizes" in report else parts[1:]
        for header, body in zip(report["headers"], bodies, strict=True):
            try:
                self.ended(manager, header, body)
            except Exception:
                log.exception("the end of task %s could not be handled", header["id"])

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
        entry.printed = header.get("printed")
        match header.get("end", "result"):
            case "result":
                entry.on_result(EngineResult(entry.task.task_id, body))
                return not entry.formats
            case "cancelled":
                self._waiting.end_cancelled(entry)
                return True
            case "overdue":
                self._waiting.end_overdue(entry, float(body))
                return True
            case _:
                reason = f"{body.decode(errors='replace')} on {host or 'its node'}"
                return not self._waiting.retry_or_fail(entry, reason)

    def is_unsettled(self, task_id: str) -> bool:
        """Return whether a manager has reported a task's end that may not be on disk yet."""
        return task_id in self._unsettled

    def settle(self, task_ids: Collection[str]) -> None:
        """Let managers discard ends that are on disk."""
        of_managers: dict[str, list[str]] = {}
        for task_id in task_ids:
            manager_id = self._unsettled.pop(task_id, None)
            if manager_id is not None:
                of_managers.setdefault(manager_id, []).append(task_id)
        for manager_id, settled in of_managers.items():
            self._send(manager_id, [b"safe", " ".join(settled).encode()])

    # Reconnected managers and lost managers

    def reconcile(
        self, manager: ManagerRecord, asked: Collection[str], held: dict[str, Any]
    ) -> list[str]:
        """Queue tasks again that a broken connection lost; return tasks for the manager to drop.

        Args:
            manager: the manager, connected again.
            asked: the tasks that it should have.
            held: its report of those that it has.
        """
        there = {*held["waiting"], *held["running"], *held["ended"]}
        for task_id in asked:
            if task_id in there:
                entry = manager.tasks.get(task_id)
                if entry is not None and (entry.cancelled or entry.urgency == HELD):
                    kind = b"cancel" if entry.cancelled else b"take"  # it may not have arrived
                    self._send(manager.manager_id, [kind, task_id.encode()])
                continue
            entry = self.release(manager, task_id)
            if entry is not None:
                logs.event(log, logging.WARNING, "task lost in transit, retrying", task=task_id)
                self._waiting.requeue(entry)
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
                headers.append(entry.header())
                buffers.append(entry.task.buffer.encode())
                if not manager.tasks:
                    manager.activity.quiet_since = time.monotonic()
                manager.tasks[entry.task.task_id] = entry
                count -= 1
            sizes, frames = combined(buffers)
            batch = compact_json({"headers": headers, "sizes": sizes})
            self._send(manager.manager_id, [b"tasks", batch, *frames])

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

    def set_urgency(self, task_id: str, urgency: int) -> None:
        """Set the urgency of a task that has not begun; unknown ids are ignored.

        A manager's task is not started in another order, but taken back if it is held now.
        """
        waiting = self._waiting.find(task_id)
        if waiting is not None:
            self._waiting.set_urgency(waiting, urgency)
        for manager in self._managers:
            if (entry := manager.tasks.get(task_id)) is not None:
                entry.urgency = urgency
                if urgency == HELD:
                    self._send(manager.manager_id, [b"take", task_id.encode()])

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
