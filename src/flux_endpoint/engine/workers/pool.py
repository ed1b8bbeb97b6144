"""The worker pool: the thread that owns all tasks for workers, and the managers that have them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import zmq

from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask, output_event
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import JobDemand
from flux_endpoint.engine.instance_state import InstanceState
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.workers.backlog import TaskBacklog, TaskEntry
from flux_endpoint.engine.workers.book import ManagerRecord, TaskBook, TaskDistributor
from flux_endpoint.engine.workers.handover import Handover
from flux_endpoint.engine.workers.launch import ManagerLauncher
from flux_endpoint.engine.workers.lifecycle import ManagerLifecycle, PoolStop
from flux_endpoint.engine.workers.manager_registry import ManagerRegistry
from flux_endpoint.engine.workers.pool_inbox import PoolInbox
from flux_endpoint.engine.workers.pool_socket import PoolSocket
from flux_endpoint.engine.workers.sizing import Limits, WaitReporter
from flux_endpoint.engine.workers.sleep import POOL_PAUSE, milliseconds_until
from flux_endpoint.engine.workers.spool import SpooledEnd
from flux_endpoint.engine.workers.states import ManagerState
from flux_endpoint.engine.workers.yielding import InstanceNodes

log = logging.getLogger(__name__)

#: The most running tasks that the status lists.
_MAX_LISTED = 1000


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
        on_wait: see `WaitReporter`.
        on_event: called with what followed tasks print.
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
        on_wait: Callable[[float], None] = lambda _: None,
        on_event: Callable[[EngineEvent], None] = lambda _: None,
    ) -> None:
        self._on_event = on_event
        self._wait_reporter = WaitReporter(on_wait)
        self._on_result = on_result
        self._output = output
        self._socket = PoolSocket(directory, config.address, spans_hosts=backend.spans_hosts)
        launcher = ManagerLauncher(
            backend, config, tasks=tasks, directory=directory, socket=self._socket
        )
        self._waiting = TaskBacklog(config.max_retries_on_system_failure, on_left)
        self._registry = ManagerRegistry(
            Limits.of(config, backend.resources, launcher.workers),
            InstanceNodes.of(backend.resources, backend.nodes()),
            config.idle_timeout,
        )
        self._book = TaskBook(self._waiting, self._socket.send)
        self._handover = Handover(
            self._registry.managers, self._book, self._waiting, self._socket.send, on_found
        )
        self._distributor = TaskDistributor(
            self._registry.managers, self._waiting, self._socket.send
        )
        self._inbox = PoolInbox()
        self._lifecycle = ManagerLifecycle(
            backend,
            launcher,
            self._registry,
            self._book,
            self._waiting,
            send=self._socket.send,
            tell=self._tell,
            on_job_end=self._job_ended,
            on_gone=self._handover.gone,
            instance=instance,
        )
        #: Monotonic time of this turn. One reading decides both what is due now and how long to
        #: wait: a deadline between two readings would be missed.
        self._now = 0.0
        self._status: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, name="worker-pool", daemon=True)

    def start(self, left: Iterable[SpooledEnd] = ()) -> None:
        """Find the managers from before a restart; start the thread and the permanent managers.

        Args:
            left: ends that others than these managers have left on disk.

        Raises:
            EngineError: Flux does not list the managers.
            ConfigurationError: `engine.address` is not an address of this host.
        """
        found, ends = self._lifecycle.find()
        self._handover.begin((each.manager_id for each in found), [*left, *ends])
        for each in found:
            self._lifecycle.adopt(each)
        self._socket.open()
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
        self._inbox.settle(task_ids)

    def cancel(self, task_id: str, signum: int | None = None) -> None:
        """End a waiting or running task with the result `TaskCancelled`.

        With `signum`, only send that signal to the processes of a running task.
        """
        self._tell(lambda: self._cancel(task_id, signum))

    def set_urgency(self, task_id: str, urgency: int) -> None:
        """Set the urgency of a task that has not begun; 0 holds it."""
        self._tell(lambda: self._distributor.set_urgency(task_id, urgency))

    def follow_output(self, request: dict[str, Any]) -> None:
        """Follow a task's output: the managers get the request, and one of them has the task."""
        frames = [b"follow", json.dumps(request).encode()]
        self._tell(lambda: self._socket.send_all(frames))

    def make_room(self, demand: JobDemand) -> None:
        """Set the endpoint's jobs' resources and requests; workers make room for these."""
        self._tell(lambda: self._registry.demand(demand))

    def hold(self) -> None:
        """Start no more tasks; running ones go on."""
        self._tell(self._stopping.hold)

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
        running = dict(islice(self._book.running.copy().items(), _MAX_LISTED))
        return {**self._status, "running_tasks": running}

    def stop(self, grace: float) -> None:
        """Let running tasks finish for at most `grace` seconds, then end all managers."""
        self.hold()
        if grace > 0:
            self._stopping.drained.wait(grace)
        self._tell(self._lifecycle.stop_all)
        self._thread.join()
        self._lifecycle.close()
        self._socket.close()
        self._inbox.close()

    def _tell(self, message: Callable[[], None]) -> None:
        self._inbox.put(message)

    # On the pool's thread

    @property
    def _stopping(self) -> PoolStop:
        return self._lifecycle.stopping

    @property
    def _managers(self) -> dict[str, ManagerRecord]:
        return self._registry.managers

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket.source, zmq.POLLIN)
        poller.register(self._inbox, zmq.POLLIN)
        while not self._is_over():
            reserve = min((m.reserve for m in self._managers.values()), default=0.0)
            if pause := POOL_PAUSE.left(reserve):
                time.sleep(pause)
            for source, _ in poller.poll(self._poll_timeout()):
                if source is self._socket.source:
                    self._safely(self._receive)
                else:
                    self._inbox.clear()
            self._safely(self._settle)  # a task that is submitted again comes after its settling
            for message in self._inbox.messages():
                self._safely(message)
            self._now = time.monotonic()
            self._expire()
            self._waiting.leave_late(time.time())
            if not self._handover.is_pending:
                self._distribute()
            if self._stopping.is_stopping and not any(m.tasks for m in self._managers.values()):
                self._stopping.drained.set()
            self._status = self._counters()

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            log.exception("the worker pool could not process a message; it goes on")

    def _settle(self) -> None:
        """Let managers discard what is on disk: several ends in one message."""
        self._handover.settle(self._inbox.settled(at_once=self._stopping.is_stopping))

    def _distribute(self) -> None:
        """Give tasks to managers, and adapt the number of managers."""
        self._distributor.recall(self._now)
        if self._stopping.is_stopping:
            return
        self._distributor.assign()
        self._distributor.balance(self._now)
        self._make_room()
        self._shrink()
        self._grow()
        self._tell_wait()

    def _expire(self) -> None:
        self._lifecycle.expire(self._now)
        if self._now >= self._handover.due:
            for manager in self._handover.silent():
                self._lifecycle.give_up(manager, "the workers found after a restart do not answer")

    def _is_over(self) -> bool:
        if not (self._stopping.is_stopping and self._stopping.drained.is_set()):
            return False
        return not self._managers or self._now >= self._stopping.give_up_at

    def _poll_timeout(self) -> int | None:
        """Return the milliseconds until something is due even if no message arrives."""
        moments = [
            *self._lifecycle.moments(self._now),
            *self._distributor.moments(self._now),
            self._handover.due,
            self._inbox.settle_at,
        ]
        # Until then nothing of this is done: what is due would keep this thread from sleeping.
        if not (self._stopping.is_stopping or self._handover.is_pending):
            moments.extend(self._registry.moments(self._now))
        now = time.monotonic()
        moments.append(now + self._waiting.late_at - time.time())
        return milliseconds_until(moments, now)

    def _counters(self) -> dict[str, Any]:
        held = sum(len(m.tasks) for m in self._managers.values())
        return {
            **self._registry.counters(),
            "workers_error": self._lifecycle.starts.failure,
            "pending_tasks": len(self._waiting) + self._waiting.held,
            "outstanding_tasks": held + len(self._waiting) + self._waiting.held,
        }

    # Messages from the managers

    def _receive(self) -> None:
        while (message := self._socket.receive()) is not None:
            manager_id, kind, parts = message
            manager = self._managers.get(manager_id)
            if kind == b"output":
                self._output.write(parts[0])
            elif kind == b"printed":
                self._on_event(output_event(*json.loads(parts[0])))
            elif manager is not None:
                self._safely(partial(self._process, manager, kind, parts))

    def _process(self, manager: ManagerRecord, kind: bytes, parts: list[bytes]) -> None:
        match kind:
            case b"hello":
                self._greeted(manager, json.loads(parts[0]))
            case b"held" if parts[0] == manager.inquiry.number:
                self._holdings_reported(manager, json.loads(parts[1]))
            case _ if manager.state is ManagerState.FOUND:
                pass  # ignore other messages before the greeting
            case b"ends":
                self._book.take_ends(manager, parts)
            case b"running":
                if (task_id := parts[0].decode()) in manager.tasks:
                    self._book.running[task_id] = float(parts[1])
            case b"returned":
                self._book.returned(manager, [part.decode() for part in parts])
            case b"late":
                self._book.late(manager, [part.decode() for part in parts])
            case b"bye":
                self._lifecycle.said_bye(manager, json.loads(parts[0])["running"])

    def _greeted(self, manager: ManagerRecord, greeting: dict[str, Any]) -> None:
        match manager.state:
            case ManagerState.STARTING:
                self._lifecycle.greeted(manager, greeting["host"])
                self._socket.send(manager.manager_id, [b"go"])
            case ManagerState.FOUND | ManagerState.READY | ManagerState.DRAINING:
                manager.host = greeting["host"]
                question = manager.inquiry.ask(manager.tasks)
                self._socket.send(manager.manager_id, [b"held?", question])
            case ManagerState.STOPPING | ManagerState.UNEXPLAINED | ManagerState.OVER:
                self._socket.send(manager.manager_id, [b"stop"])  # the first may not have arrived

    def _holdings_reported(self, manager: ManagerRecord, held: dict[str, Any]) -> None:
        asked = manager.inquiry.close()
        if manager.state is ManagerState.FOUND:
            self._lifecycle.greeted(manager, manager.host)
            self._handover.reported(manager, held)
        elif not self._handover.awaits_go(manager):
            unwanted = self._book.reconcile(manager, asked, held)
            self._handover.go(manager.manager_id, unwanted)

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

    def _make_room(self) -> None:
        """Let managers end for waiting jobs."""
        review = self._registry.review(self._distributor.unserved(self._now), self._now)
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
                self._distributor.take_back(manager, len(manager.tasks))
        for manager in review.starting:
            self._lifecycle.withdraw(manager, "makes room for a job")
        if review.kept:
            self._distributor.assign()
            self._distributor.balance(self._now)

    def _grow(self) -> None:
        """Start workers if more tasks wait than the starting workers can take."""
        backlog = self._distributor.unserved(self._now)
        for manager in self._registry.withdraw(backlog, self._now):
            self._lifecycle.withdraw(manager, "found no room")
        if self._now < self._lifecycle.starts.not_before:
            return
        for piece in self._registry.missing(backlog, self._now):
            if not self._lifecycle.start(piece):
                return

    def _tell_wait(self) -> None:
        waits = self._distributor.unserved(self._now) > 0 and self._registry.is_pending
        self._wait_reporter.observe(self._now, waits=waits)

    def _shrink(self) -> None:
        for manager in self._registry.idle(self._now):
            self._lifecycle.stop(manager)

    def _job_ended(self, manager_id: str) -> None:
        self._receive()  # its last messages
        manager = self._managers.get(manager_id)
        if manager is not None:
            self._lifecycle.job_ended(manager)

    # Ending

    def _lose(self, reason: str) -> None:
        self._receive()
        self._lifecycle.lose(reason)

    def _terminate(self, reason: str) -> None:
        self._waiting.close()
        for manager in self._managers.values():
            self._socket.send(manager.manager_id, [b"terminate", reason.encode()])
