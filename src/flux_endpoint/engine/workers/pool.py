"""The worker pool: which task waits, which manager has which; starts and ends managers."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import zmq

from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import JobDemand
from flux_endpoint.engine.instance_state import Fate, InstanceState
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.workers.backlog import TaskBacklog
from flux_endpoint.engine.workers.book import TaskBook
from flux_endpoint.engine.workers.handover import Handover
from flux_endpoint.engine.workers.launch import ManagerLauncher
from flux_endpoint.engine.workers.lifecycle import ManagerLifecycle
from flux_endpoint.engine.workers.manager_registry import ManagerRegistry
from flux_endpoint.engine.workers.pool_socket import PoolSocket
from flux_endpoint.engine.workers.records import ManagerRecord, TaskEntry
from flux_endpoint.engine.workers.sizing import Limits
from flux_endpoint.engine.workers.sleep import milliseconds_until, pause_with
from flux_endpoint.engine.workers.spool import SpooledEnd
from flux_endpoint.engine.workers.states import ManagerState
from flux_endpoint.engine.workers.yielding import Site
from flux_endpoint.protocol.envelope import compact_json

log = logging.getLogger(__name__)

#: The most running tasks that the status lists.
_MOST_NAMED = 1000
#: Seconds for which settled ends are collected.
_SETTLING = 0.02
#: The most tasks in one message to a manager.
_BATCH = 128
#: Seconds without a result after which a node's waiting tasks may move to other nodes.
_STUCK_AFTER = 0.1


class WorkerPool:
    """Runs tasks on resident workers. One thread owns all state; other threads post messages.

    Args:
        backend: where the managers' jobs run.
        config: options of the engine.
        tasks: how tasks run here.
        directory: the engine's directory.
        output: log for the output of functions.
        on_result: called with the end of each task.
        on_left: called with the id of each task that is left to others, and its failed attempts.
        instance: state of the Flux instance.
        on_found: called with the ids of tasks that recovered managers have.
    """

    def __init__(
        self,
        backend: Backend,
        config: FluxEngineConfig,
        *,
        tasks: TaskSettings,
        directory: Path,
        output: OutputLog,
        on_result: Callable[[EngineResult], None],
        on_left: Callable[[str, list[str]], None],
        instance: InstanceState,
        on_found: Callable[[set[str]], None] = lambda _: None,
    ) -> None:
        self._directory = directory
        self._spans_hosts = backend.spans_hosts
        self._on_result = on_result
        self._output = output
        self._socket = PoolSocket(directory, config.address)
        self._launcher = ManagerLauncher(
            backend, config, tasks=tasks, directory=directory, socket=self._socket
        )
        self._waiting = TaskBacklog(config.max_retries_on_system_failure, on_left)
        self._registry = ManagerRegistry(
            Limits.of(config, backend.resources, self._launcher.workers),
            Site.of(backend.resources, backend.nodes()),
            config.idle_timeout,
        )
        self._managers = self._registry.managers
        self._book = TaskBook(self._waiting, self._socket.send)
        self._handover = Handover(
            self._managers, self._book, self._waiting, self._socket.send, on_found
        )
        self._lifecycle = ManagerLifecycle(
            backend,
            self._launcher,
            self._registry,
            self._book,
            self._waiting,
            send=self._socket.send,
            tell=self._tell,
            on_job_end=self._job_ended,
            on_gone=self._handover.gone,
            is_over=lambda: instance.fate() is Fate.LEFT,
            awaits_loss=lambda: instance.fate() is Fate.AWAITS_LOSS,
        )
        #: Monotonic time of this turn. One reading decides both what is due now and how long to
        #: wait: a deadline between two readings would be missed.
        self._now = 0.0
        self._drained = threading.Event()
        self._inbox: deque[Callable[[], None]] = deque()
        #: Tasks whose ends the submitter has on disk.
        self._settled: deque[str] = deque()
        #: Whether the thread was woken for these, and the monotonic time at which managers hear of
        #: them: no task waits for that.
        self._will_settle = False
        self._settle_at = math.inf
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()
        #: Whether the thread was woken and has not looked into the inbox since.
        self._is_woken = False
        self._status: dict[str, Any] = {}
        self._poller = zmq.Poller()
        self._thread = threading.Thread(target=self._run, name="worker-pool", daemon=True)

    def start(self, left: Iterable[SpooledEnd] = ()) -> None:
        """Find the managers from before a restart; start the thread and the permanent managers.

        Args:
            left: ends that others than these managers have left on disk.

        Raises:
            EngineError: Flux does not list the managers.
            ConfigurationError: `engine.address` is not an address of this host.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        found, ends = self._launcher.find()
        self._handover.begin((each.manager_id for each in found), [*left, *ends])
        for each in found:
            self._lifecycle.adopt(each)
        self._socket.open(spans_hosts=self._spans_hosts)
        self._poller.register(self._socket.source, zmq.POLLIN)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._status = self._counters()
        self._tell(self._handover.tell_found)  # the first turn starts the permanent managers
        self._thread.start()

    def submit(self, task: EngineTask, attempts: list[str]) -> None:
        """Queue a task that had `attempts` that failed; it ends in one call of `on_result`."""
        entry = TaskEntry(task, self._on_result, attempts=attempts)
        self._tell(lambda: self._handover.take(entry))

    def format(self, task: EngineTask, on_result: Callable[[EngineResult], None]) -> None:
        """Have a worker format the arguments of a command task into its command.

        Args:
            task: a command task.
            on_result: called with the result, whose value is the packed formatted task.
        """
        self._tell(lambda: self._handover.take(TaskEntry(task, on_result, formats=True)))

    def recovered(self) -> None:
        """Signal that all tasks of the previous run have been submitted again."""
        self._tell(self._handover.complete)

    def settle(self, task_ids: Collection[str]) -> None:
        """Discard ends of tasks that the submitter has on disk."""
        self._settled.extend(task_ids)
        if not self._will_settle:
            self._will_settle = True
            self._wake()

    def cancel(self, task_id: str, signum: int | None = None) -> None:
        """End a waiting or running task with the result `TaskCancelled`.

        With `signum`, only send that signal to the processes of a running task.
        """
        self._tell(lambda: self._cancel(task_id, signum))

    def make_room(self, demand: JobDemand) -> None:
        """Set the endpoint's jobs' resources and requests; workers make room for these."""
        self._tell(lambda: self._registry.demand(demand))

    def hold(self) -> None:
        """Start no more tasks; running ones go on."""
        self._tell(lambda: setattr(self._lifecycle, "is_stopping", True))

    def lose(self, reason: str) -> None:
        """Handle the loss of the instance: fail what ran and may not be retried; keep the rest."""
        self._tell(lambda: self._lose(reason))

    def terminate(self, reason: str) -> None:
        """Send SIGTERM to all running tasks, and start no more.

        Tasks that this ends are lost for `reason`.
        """
        self._tell(lambda: self._terminate(reason))

    def status(self) -> dict[str, Any]:
        """Return the counters as of the latest event, and the tasks that run for a while."""
        running = dict(islice(self._book.running.copy().items(), _MOST_NAMED))
        return {**self._status, "running_tasks": running}

    def stop(self, grace: float) -> None:
        """Let running tasks finish for at most `grace` seconds, then end all managers."""
        self.hold()
        if grace > 0:
            self._drained.wait(grace)
        self._tell(self._stop_all)
        self._thread.join()
        self._lifecycle.close()
        self._socket.close()
        with self._wake_lock:
            os.close(self._wake_fd)
            self._wake_fd = -1

    def _tell(self, message: Callable[[], None]) -> None:
        self._inbox.append(message)
        self._wake()

    def _wake(self) -> None:
        with self._wake_lock:
            if self._wake_fd >= 0 and not self._is_woken:
                self._is_woken = True
                os.eventfd_write(self._wake_fd, 1)

    # On the pool's thread

    def _run(self) -> None:
        while not self._is_over():
            # Half of a manager's reserve is in its workers, who need the other half meanwhile.
            reserve = min((m.reserve / 2 for m in self._managers.values()), default=0.0)
            if pause := pause_with(reserve):
                time.sleep(pause)
            for source, _ in self._poller.poll(self._patience()):
                if source == self._wake_fd:
                    with self._wake_lock:
                        self._is_woken = False
                        os.eventfd_read(self._wake_fd)
                else:
                    self._safely(self._receive)
            self._safely(self._settle)  # a task that is submitted again comes after its settling
            while self._inbox:
                self._safely(self._inbox.popleft())
            self._now = time.monotonic()
            self._expire()
            self._waiting.leave_late(time.time())
            if not self._handover.is_pending:
                self._assign()
                self._balance()
                if not self._lifecycle.is_stopping:
                    self._make_room()
                    self._shrink()
                    self._grow()
            if self._lifecycle.is_stopping and not any(m.tasks for m in self._managers.values()):
                self._drained.set()
            self._status = self._counters()

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            log.exception("the worker pool could not process a message; it goes on")

    def _settle(self) -> None:
        """Let managers discard what is on disk: several ends in one message."""
        if self._will_settle and self._settle_at == math.inf:
            self._settle_at = time.monotonic() + _SETTLING
        if self._lifecycle.is_stopping or time.monotonic() >= self._settle_at:
            self._will_settle, self._settle_at = False, math.inf  # before the next look
            settled = [self._settled.popleft() for _ in range(len(self._settled))]
            self._handover.settle(settled)

    def _expire(self) -> None:
        self._lifecycle.expire(self._now)
        if self._now >= self._handover.due:
            for manager in self._handover.silent():
                self._lifecycle.give_up(manager, "the workers found after a restart do not answer")

    def _is_over(self) -> bool:
        if not (self._lifecycle.is_stopping and self._drained.is_set()):
            return False
        return not self._managers or self._now >= self._lifecycle.give_up_at

    def _patience(self) -> int | None:
        """Return the milliseconds until something is due even if no message arrives."""
        moments = [*self._lifecycle.moments(self._now), self._handover.due, self._settle_at]
        if not self._lifecycle.is_stopping:
            moments.extend(self._registry.moments(self._now))
        stuck = (m.quiet_since + _STUCK_AFTER for m in self._managers.values() if m.surplus)
        # By then `_grow` and `_balance` have done what was possible.
        moments.extend(moment for moment in stuck if moment > self._now)
        now = time.monotonic()
        moments.append(now + self._waiting.late_at - time.time())
        return milliseconds_until(moments, now)

    def _counters(self) -> dict[str, Any]:
        held = sum(len(m.tasks) for m in self._managers.values())
        return {
            **self._registry.counters(),
            "workers_error": self._lifecycle.not_started,
            "pending_tasks": len(self._waiting),
            "outstanding_tasks": held + len(self._waiting),
        }

    # Messages from the managers

    def _receive(self) -> None:
        while (message := self._socket.receive()) is not None:
            manager_id, kind, parts = message
            manager = self._managers.get(manager_id)
            if kind == b"output":
                self._output.write(parts[0])
            elif manager is not None:
                self._safely(partial(self._hear, manager, kind, parts))

    def _hear(self, manager: ManagerRecord, kind: bytes, parts: list[bytes]) -> None:
        match kind:
            case b"hello":
                self._greeted(manager, json.loads(parts[0]))
            case b"held" if parts[0] == manager.question:
                self._told_what_is_held(manager, json.loads(parts[1]))
            case _ if manager.state is ManagerState.FOUND:
                pass  # ignore other messages before the greeting
            case b"ends":
                self._take_ends(manager, parts)
            case b"running":
                if (task_id := parts[0].decode()) in manager.tasks:
                    self._book.running[task_id] = float(parts[1])
            case b"returned":
                self._book.returned(manager, [part.decode() for part in parts])
            case b"late":
                self._book.late(manager, [part.decode() for part in parts])
            case b"bye":
                self._lifecycle.said_bye(manager, json.loads(parts[0])["running"])

    def _take_ends(self, manager: ManagerRecord, parts: list[bytes]) -> None:
        report = json.loads(parts[0])
        manager.task_seconds = report["seconds"]
        manager.quiet_since = time.monotonic()
        for header, body in zip(report["headers"], parts[1:], strict=True):
            self._book.ended(manager, header, body)

    def _greeted(self, manager: ManagerRecord, greeting: dict[str, Any]) -> None:
        match manager.state:
            case ManagerState.STARTING:
                self._lifecycle.greeted(manager, greeting["host"])
                self._socket.send(manager.manager_id, [b"go"])
            case ManagerState.FOUND | ManagerState.READY | ManagerState.DRAINING:
                manager.host = greeting["host"]
                manager.asked = list(manager.tasks)
                manager.question = os.urandom(8)
                self._socket.send(manager.manager_id, [b"held?", manager.question])
            case ManagerState.STOPPING | ManagerState.UNEXPLAINED | ManagerState.OVER:
                self._socket.send(manager.manager_id, [b"stop"])  # the first may not have arrived

    def _told_what_is_held(self, manager: ManagerRecord, held: dict[str, Any]) -> None:
        manager.question = b""
        if manager.state is not ManagerState.FOUND:
            if manager.awaits_go:  # its connection broke before all earlier tasks were submitted
                return
            unwanted = self._book.reconcile(manager, held)
            self._handover.go(manager, unwanted)
            return
        self._lifecycle.greeted(manager, manager.host)
        self._handover.heard(manager, held)

    # Distributing tasks

    def _assign(self) -> None:
        if not self._waiting or self._lifecycle.is_stopping:
            return
        ready = self._registry.ready
        # First give every worker one task, starting with managers that stay anyway or are busy, so
        # that the others may be given back.
        for manager in sorted(ready, key=lambda m: (not m.permanent, m.free)):
            self._send(manager, manager.free)
        # Then send tasks ahead to where they may wait.
        workers = sum(manager.workers for manager in ready)
        for manager in sorted(ready, key=lambda m: len(m.tasks) / m.workers):
            share = math.ceil(len(self._waiting) * manager.workers / workers)
            self._send(manager, min(manager.room, share))
            workers -= manager.workers

    def _send(self, manager: ManagerRecord, count: int) -> None:
        while count > 0 and self._waiting:
            headers: list[dict[str, Any]] = []
            buffers: list[bytes] = []
            for _ in range(min(count, _BATCH, len(self._waiting))):
                entry = self._waiting.take()
                headers.append(_header_of(entry))
                buffers.append(entry.task.buffer.encode())
                if not manager.tasks:
                    manager.quiet_since = time.monotonic()
                manager.tasks[entry.task.task_id] = entry
                count -= 1
            self._socket.send(manager.manager_id, [b"tasks", compact_json(headers), *buffers])

    def _balance(self) -> None:
        """Take waiting tasks back from one node while workers of another are idle.

        Also take back all tasks from managers that should end.
        """
        for manager in self._managers.values():
            if manager.state is ManagerState.DRAINING and self._is_stuck(manager):
                self._take_back(manager, len(manager.tasks))
        wanted = sum(m.free for m in self._managers.values())
        if self._waiting or self._lifecycle.is_stopping or not wanted:
            return
        for manager in self._managers.values():
            if wanted > 0 and manager.state is ManagerState.READY and self._is_stuck(manager):
                count = min(wanted, manager.surplus)
                self._take_back(manager, count)
                wanted -= count

    def _take_back(self, manager: ManagerRecord, count: int) -> None:
        """Ask a manager to return tasks that it has not started."""
        self._socket.send(manager.manager_id, [b"return", b"%d" % count])
        manager.quiet_since = time.monotonic()

    def _is_stuck(self, manager: ManagerRecord) -> bool:
        return manager.surplus > 0 and self._now >= manager.quiet_since + _STUCK_AFTER

    def _cancel(self, task_id: str, signum: int | None) -> None:
        waiting = self._waiting.find(task_id)
        if waiting is not None and signum is None:
            self._waiting.cancel(waiting)
        for manager in self._managers.values():
            held = manager.tasks.get(task_id)
            if held is not None:
                held.cancelled = held.cancelled or signum is None
                message = [b"cancel"] if signum is None else [b"signal", str(signum).encode()]
                self._socket.send(manager.manager_id, [*message, task_id.encode()])
                return

    # The number of managers

    @property
    def _unserved(self) -> int:
        """Number of tasks that find no worker."""
        stuck = (m.surplus for m in self._managers.values() if self._is_stuck(m))
        return len(self._waiting) + sum(stuck)

    def _make_room(self) -> None:
        """Let managers end for waiting jobs."""
        review = self._registry.review(self._unserved, self._now)
        for manager in review.draining:
            logs.event(
                log,
                logging.INFO,
                "workers make room for a job",
                host=manager.host,
                workers=manager.workers,
                running=len(manager.tasks),
            )
            if manager.tasks:
                self._take_back(manager, len(manager.tasks))
        for manager in review.starting:
            self._lifecycle.withdraw(manager, "makes room for a job")
        if review.kept:
            self._assign()
            self._balance()

    def _grow(self) -> None:
        """Start workers if more tasks wait than the starting workers can take."""
        backlog = self._unserved
        for manager in self._registry.withdraw(backlog, self._now):
            self._lifecycle.withdraw(manager, "found no room")
        if self._now < self._lifecycle.not_before:
            return
        for piece in self._registry.missing(backlog, self._now):
            if not self._lifecycle.start(piece):
                return

    def _shrink(self) -> None:
        for manager in self._registry.idle(self._now):
            if not manager.awaits_go:
                self._lifecycle.stop(manager)

    def _job_ended(self, manager_id: str) -> None:
        self._receive()  # its last messages
        manager = self._managers.get(manager_id)
        if manager is not None:
            self._lifecycle.job_ended(manager)

    # Ending

    def _stop_all(self) -> None:
        self._drained.set()
        self._lifecycle.stop_all()

    def _lose(self, reason: str) -> None:
        self._receive()
        self._lifecycle.lose(reason)

    def _terminate(self, reason: str) -> None:
        self._waiting.close()
        for manager in self._managers.values():
            self._socket.send(manager.manager_id, [b"terminate", reason.encode()])


def _header_of(entry: TaskEntry) -> dict[str, Any]:
    task = entry.task
    header: dict[str, Any] = {"id": task.task_id}
    if task.result_serializers:
        header["rs"] = task.result_serializers
    if entry.formats:
        header["format"] = True
    if task.start_before is not None:
        header["before"] = task.start_before
    return header
