"""The worker pool: which task waits, which manager holds which; managers come and go."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import zmq

from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend, JobEvent
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.demand import JobDemand, placement_of
from flux_endpoint.engine.outcome import end_of_job, error_of, has_timed_out, was_cancelled
from flux_endpoint.engine.output import OutputLog
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.workers.backlog import Backlog
from flux_endpoint.engine.workers.crew import Crew
from flux_endpoint.engine.workers.launch import ManagerLauncher
from flux_endpoint.engine.workers.records import Entry, ManagerRecord, ManagerState
from flux_endpoint.engine.workers.sizing import Limits, Piece
from flux_endpoint.engine.workers.sleep import milliseconds_until
from flux_endpoint.engine.workers.yielding import Site

log = logging.getLogger(__name__)

#: Seconds before a manager that did not come up is tried again: the first, doubled up to the last.
_FIRST_BACKOFF, _LAST_BACKOFF = 0.5, 30.0
#: So many failures to start in a row end the tasks that wait.
_MOST_FAILURES = 4
#: Most running tasks that the status names.
_MOST_NAMED = 1000
#: Most tasks in one message to a manager.
_BATCH = 128
#: Seconds without a result after which the tasks that wait on a node may go elsewhere.
_STUCK_AFTER = 0.1
#: Seconds that managers have to end before their jobs are cancelled, then before they are given up.
_END_PATIENCE, _CANCEL_PATIENCE = 3.0, 15.0


class WorkerPool:
    """Runs tasks on resident workers. One thread owns all state; other threads leave messages."""

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
        is_over: Callable[[], bool],
        awaits_loss: Callable[[], bool],
    ) -> None:
        self._backend = backend
        #: Whether the instance has come to its time limit or its end, and ends jobs.
        self._is_expired = is_over
        #: Whether it is ending, and `lose` comes.
        self._awaits_loss = awaits_loss
        self._on_result = on_result
        self._launcher = ManagerLauncher(
            backend, config, tasks=tasks, directory=directory, output=output
        )
        self._waiting = Backlog(config.max_retries_on_system_failure, on_left)
        self._crew = Crew(
            Limits.of(config, backend.resources, self._launcher.workers),
            Site.of(backend.resources, backend.nodes()),
            config.idle_timeout,
        )
        self._managers = self._crew.managers
        #: Tasks that run for a while already, and when each was started (seconds since the epoch).
        self._running: dict[str, float] = {}
        self._failures = 0
        #: Why the latest group of workers did not start, until one has.
        self._not_started = ""
        self._not_before = 0.0
        #: Monotonic time of this turn. What is to be done now and what is to be waited for are told
        #: apart by this one reading: what came between two would be neither.
        self._now = 0.0
        self._stopping = False
        #: When what has not ended is cancelled, and when it is given up.
        self._cancel_at = self._give_up_at = math.inf
        self._drained = threading.Event()
        self._questions = ThreadPoolExecutor(1, thread_name_prefix="pool-questions")
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()
        self._status: dict[str, Any] = {}
        self._poller = zmq.Poller()
        self._thread = threading.Thread(target=self._run, name="worker-pool", daemon=True)

    def start(self) -> None:
        """Start the thread and the managers that are always there."""
        self._launcher.open()
        self._poller.register(self._launcher.socket, zmq.POLLIN)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._status = self._counters()
        self._tell(lambda: None)  # the first turn starts the managers that are always there
        self._thread.start()

    def submit(self, task: EngineTask, attempts: list[str]) -> None:
        """Queue a task, after `attempts` that failed; it ends in one call of `on_result`."""
        entry = Entry(task, self._on_result, attempts=attempts)
        self._tell(lambda: self._waiting.append(entry))

    def format(self, task: EngineTask, on_result: Callable[[EngineResult], None]) -> None:
        """Have a worker put a command task's arguments into its command.

        Args:
            task: a command task.
            on_result: given the result, whose value is the formatted task, packed.
        """
        self._tell(lambda: self._waiting.append(Entry(task, on_result, formats=True)))

    def cancel(self, task_id: str, signum: int | None = None) -> None:
        """End a task that waits or runs; its result says `TaskCancelled`.

        With `signum`, only send that signal to the processes of a task that runs.
        """
        self._tell(lambda: self._cancel(task_id, signum))

    def make_room(self, demand: JobDemand) -> None:
        """Take note of what the endpoint's jobs have and want; workers make room for those."""
        self._tell(lambda: self._crew.demand(demand))

    def hold(self) -> None:
        """Start nothing more; what runs goes on."""
        self._tell(lambda: setattr(self, "_stopping", True))

    def lose(self, reason: str) -> None:
        """End what runs and may not be tried again, and keep the rest: nothing runs any more."""
        self._tell(lambda: self._lose(reason))

    def terminate(self, reason: str) -> None:
        """Signal all that runs (SIGTERM), and start nothing more.

        What ends of the signal is lost for this reason.
        """
        self._tell(lambda: self._terminate(reason))

    def status(self) -> dict[str, Any]:
        """Return counters, as of the last thing that happened, and what runs for a while."""
        running = dict(islice(self._running.copy().items(), _MOST_NAMED))
        return {**self._status, "running_tasks": running}

    def stop(self, grace: float) -> None:
        """Let what runs finish for at most `grace` seconds, then end every manager."""
        self.hold()
        if grace > 0:
            self._drained.wait(grace)
        self._tell(self._stop_all)
        self._thread.join()
        self._questions.shutdown(wait=False, cancel_futures=True)
        self._launcher.close()
        with self._wake_lock:
            os.close(self._wake_fd)
            self._wake_fd = -1

    def _tell(self, message: Callable[[], None]) -> None:
        self._inbox.append(message)
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    # The pool's thread

    def _run(self) -> None:
        while not self._is_over():
            for source, _ in self._poller.poll(self._patience()):
                if source == self._wake_fd:
                    os.eventfd_read(self._wake_fd)
                else:
                    self._safely(self._receive)
            while self._inbox:
                self._safely(self._inbox.popleft())
            self._now = time.monotonic()
            self._waiting.leave_late(time.time())
            self._assign()
            self._balance()
            if not self._stopping:
                self._make_room()
                self._shrink()
                self._grow()
            self._insist()
            if self._stopping and not any(m.tasks for m in self._managers.values()):
                self._drained.set()
            self._status = self._counters()

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            log.exception("a message to the worker pool could not be dealt with; the others go on")

    def _is_over(self) -> bool:
        if not (self._stopping and self._drained.is_set()):
            return False
        return not self._managers or self._now >= self._give_up_at

    def _patience(self) -> int | None:
        """Return milliseconds until something must be done even if nothing happens."""
        moments = [self._cancel_at, self._give_up_at]
        if self._not_before > self._now:
            moments.append(self._not_before)
        if not self._stopping:
            moments.extend(self._crew.moments(self._now))
        stuck = (m.quiet_since + _STUCK_AFTER for m in self._managers.values() if m.surplus)
        # Afterwards `_grow` and `_balance` have done what could be done.
        moments.extend(moment for moment in stuck if moment > self._now)
        now = time.monotonic()
        moments.append(now + self._waiting.late_at - time.time())
        return milliseconds_until(moments, now)

    def _counters(self) -> dict[str, Any]:
        held = sum(len(m.tasks) for m in self._managers.values())
        return {
            **self._crew.counters(),
            "workers_error": self._not_started,
            "pending_tasks": len(self._waiting),
            "outstanding_tasks": held + len(self._waiting),
        }

    # Messages of the managers

    def _receive(self) -> None:
        while (message := self._launcher.receive()) is not None:
            manager_id, kind, parts = message
            manager = self._managers.get(manager_id)
            if manager is None:
                continue  # it was given up
            if kind == b"results":
                self._take_results(manager, parts)
            elif kind == b"hello":
                self._greeted(manager, json.loads(parts[1]))
            elif kind == b"running":
                self._started(manager, parts[0].decode(), float(parts[1]))
            elif kind == b"returned":
                self._returned(manager, parts)
            elif kind == b"late":
                self._late(manager, parts)
            elif kind == b"held":
                self._reconcile(manager, {part.decode() for part in parts})
            elif kind == b"lost":
                self._lost(manager, parts[0].decode(), parts[1].decode())
            elif kind == b"cancelled":
                entry = self._release(manager, parts[0].decode())
                if entry is not None:
                    self._waiting.end_cancelled(entry)

    def _take_results(self, manager: ManagerRecord, parts: list[bytes]) -> None:
        manager.ahead = json.loads(parts[0])["ahead"]
        manager.quiet_since = time.monotonic()
        for identity, body in zip(parts[1::2], parts[2::2], strict=True):
            task_id = identity.decode()
            entry = self._release(manager, task_id)
            if entry is not None:
                entry.on_result(EngineResult(task_id, body))

    def _started(self, manager: ManagerRecord, task_id: str, moment: float) -> None:
        if task_id in manager.tasks:
            self._running[task_id] = moment

    def _release(self, manager: ManagerRecord, task_id: str) -> Entry | None:
        entry = manager.tasks.pop(task_id, None)
        started = self._running.pop(task_id, None)
        if entry is not None:
            entry.started = started
        if not manager.tasks:
            manager.idle_since = time.monotonic()
        return entry

    def _returned(self, manager: ManagerRecord, parts: list[bytes]) -> None:
        for identity in parts:
            entry = self._release(manager, identity.decode())
            if entry is not None:
                self._waiting.requeue(entry)

    def _late(self, manager: ManagerRecord, parts: list[bytes]) -> None:
        for identity in parts:
            entry = self._release(manager, identity.decode())
            if entry is not None:
                self._waiting.leave(entry)

    def _reconcile(self, manager: ManagerRecord, held: set[str]) -> None:
        """Queue again what a broken connection has lost, be it the task or its result."""
        for task_id in manager.asked:
            if task_id in held:
                entry = manager.tasks.get(task_id)
                if entry is not None and entry.cancelled:  # that may not have arrived
                    self._launcher.send(manager.manager_id, [b"cancel", task_id.encode()])
                continue
            entry = self._release(manager, task_id)
            if entry is not None:
                logs.event(log, logging.WARNING, "task lost on its way, again", task=task_id)
                self._waiting.requeue(entry)
        manager.asked = []

    def _greeted(self, manager: ManagerRecord, greeting: dict[str, Any]) -> None:
        if manager.state in {"ready", "draining"}:  # it was connected before
            manager.asked = list(manager.tasks)
            self._launcher.send(manager.manager_id, [b"held?"])
        elif manager.state == "stopping":
            self._launcher.send(manager.manager_id, [b"stop"])  # it may not have had the first
        if manager.state == "starting":
            manager.state = "ready"
            manager.host = greeting["host"]
            manager.idle_since = manager.greeted_at = time.monotonic()
            self._failures = 0
            self._not_started = ""
            logs.event(
                log,
                logging.INFO,
                "workers ready",
                host=manager.host,
                workers=manager.workers,
                manager=manager.manager_id,
            )

    # Tasks

    def _assign(self) -> None:
        if not self._waiting or self._stopping:
            return
        ready = self._crew.ready
        # First every worker gets something to do, those first that stay anyhow or have company:
        # the others may then be given back.
        for manager in sorted(ready, key=lambda m: (not m.permanent, m.free)):
            self._send(manager, manager.free)
        # Then what may wait close to it.
        for manager in sorted(ready, key=lambda m: len(m.tasks) / m.workers):
            self._send(manager, manager.room)

    def _send(self, manager: ManagerRecord, count: int) -> None:
        while count > 0 and self._waiting:
            frames = [b"tasks"]
            for _ in range(min(count, _BATCH, len(self._waiting))):
                entry = self._waiting.take()
                task = entry.task
                header: dict[str, Any] = {"id": task.task_id}
                if task.result_serializers:
                    header["rs"] = task.result_serializers
                if entry.formats:
                    header["format"] = True
                if task.start_before is not None:
                    header["before"] = task.start_before
                frames += (json.dumps(header).encode(), task.buffer.encode())
                if not manager.tasks:
                    manager.quiet_since = time.monotonic()
                manager.tasks[task.task_id] = entry
                count -= 1
            self._launcher.send(manager.manager_id, frames)

    def _balance(self) -> None:
        """Ask for tasks that wait on one node while workers of another have nothing to do.

        And for all that wait on one whose workers are to end.
        """
        for manager in self._managers.values():
            if manager.state == "draining" and self._is_stuck(manager):
                self._take_back(manager)
        wanted = sum(m.free for m in self._managers.values())
        if self._waiting or self._stopping or not wanted:
            return
        for manager in self._managers.values():
            if wanted > 0 and manager.state == "ready" and self._is_stuck(manager):
                count = min(wanted, manager.surplus)
                self._launcher.send(manager.manager_id, [b"return", str(count).encode()])
                manager.quiet_since = time.monotonic()
                wanted -= count

    def _take_back(self, manager: ManagerRecord) -> None:
        """Ask for everything that a manager has not started."""
        self._launcher.send(manager.manager_id, [b"return", b"%d" % len(manager.tasks)])
        manager.quiet_since = time.monotonic()

    def _is_stuck(self, manager: ManagerRecord) -> bool:
        return manager.surplus > 0 and self._now >= manager.quiet_since + _STUCK_AFTER

    def _lost(self, manager: ManagerRecord, task_id: str, reason: str) -> None:
        entry = self._release(manager, task_id)
        if entry is not None:
            self._waiting.retry_or_fail(entry, f"{reason} on {manager.host or 'its node'}")

    def _cancel(self, task_id: str, signum: int | None) -> None:
        waiting = self._waiting.find(task_id)
        if waiting is not None and signum is None:
            self._waiting.cancel(waiting)
        for manager in self._managers.values():
            held = manager.tasks.get(task_id)
            if held is not None:
                held.cancelled = held.cancelled or signum is None
                message = [b"cancel"] if signum is None else [b"signal", str(signum).encode()]
                self._launcher.send(manager.manager_id, [*message, task_id.encode()])
                return

    def _terminate(self, reason: str) -> None:
        self._waiting.close()
        for manager in self._managers.values():
            self._launcher.send(manager.manager_id, [b"terminate", reason.encode()])

    # Managers

    @property
    def _unserved(self) -> int:
        """How many tasks find no worker."""
        stuck = (m.surplus for m in self._managers.values() if self._is_stuck(m))
        return len(self._waiting) + sum(stuck)

    def _make_room(self) -> None:
        """Have managers leave for jobs that wait."""
        review = self._crew.review(self._unserved, self._now)
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
                self._take_back(manager)
        for manager in review.unborn:
            self._withdraw(manager, "makes room for a job")
        if review.kept:
            self._assign()
            self._balance()

    def _grow(self) -> None:
        """Start workers where more tasks wait than the coming ones can take."""
        backlog = self._unserved
        for manager in self._crew.withdraw(backlog, self._now):
            self._withdraw(manager, "found no room")
        if self._now < self._not_before:
            return
        for piece in self._crew.missing(backlog, self._now):
            if not self._start_manager(piece):
                return

    def _start_manager(self, piece: Piece) -> bool:
        manager_id = secrets.token_hex(4)
        try:
            job = self._launcher.launch(manager_id, piece.workers, self._crew.urgency)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            if self._backend.is_lost(error):
                return False
            self._start_failed(manager_id, f"their job can't be submitted: {error}")
            return False
        manager = ManagerRecord(
            manager_id,
            piece.workers,
            job,
            permanent=piece.permanent,
            amount=self._launcher.amount(piece.workers),
            submitted_at=time.monotonic(),
        )
        self._managers[manager_id] = manager
        job.add_event_callback("priority", lambda _, __: self._tell(lambda: _eligible(manager)))
        job.add_event_callback(
            "alloc", lambda _, event: self._tell(partial(self._allocated, manager, event))
        )
        job.add_done_callback(lambda _: self._tell(lambda: self._ended(manager_id)))
        return True

    def _allocated(self, manager: ManagerRecord, event: JobEvent) -> None:
        self._crew.allocated(manager, next(iter(placement_of(event.context)), ""))

    def _shrink(self) -> None:
        for manager in self._crew.idle(self._now):
            self._stop_manager(manager)

    def _withdraw(self, manager: ManagerRecord, note: str) -> None:
        """End a manager that has not come up yet."""
        manager.state = "stopping"
        self._launcher.cancel(manager.job, note)

    def _stop_manager(self, manager: ManagerRecord) -> None:
        manager.state = "stopping"
        self._launcher.send(manager.manager_id, [b"stop"])

    def _stop_all(self) -> None:
        """End every manager, with what it runs; a job that has not greeted yet is cancelled."""
        self._drained.set()
        self._cancel_at = time.monotonic() + _END_PATIENCE
        for manager in self._managers.values():
            if manager.state == "starting":
                self._launcher.cancel(manager.job)
            elif manager.state in {"ready", "draining"}:
                self._stop_manager(manager)

    def _insist(self) -> None:
        """Cancel the jobs of managers that were told to end and have not."""
        if self._now < self._cancel_at:
            return
        self._cancel_at = math.inf
        self._give_up_at = self._now + _CANCEL_PATIENCE
        for manager in self._managers.values():
            logs.event(log, logging.WARNING, "workers do not end", host=manager.host)
            self._launcher.cancel(manager.job)

    def _ended(self, manager_id: str) -> None:
        self._receive()  # what it said before it ended
        manager = self._managers.get(manager_id)
        error = error_of(manager.job) if manager is not None else None
        if manager is None or self._backend.is_lost(error):
            return  # all of them are given up together
        unasked = not (self._stopping or manager.state == "stopping")
        if (was_cancelled(error) and unasked) or has_timed_out(error):
            # Perhaps with the instance. It is asked on another thread, since it may be slow.
            state, manager.state = manager.state, "stopping"
            self._questions.submit(self._ask_for_reason, manager, state, error)
        else:
            self._gone(manager, manager.state)

    def _ask_for_reason(
        self, manager: ManagerRecord, state: ManagerState, error: BaseException | None
    ) -> None:
        """Runs on a thread of its own."""
        is_over = False
        try:
            if was_cancelled(error) and self._awaits_loss():
                return  # all of them are given up together
            is_over = self._is_expired()
        except Exception:
            log.exception("it is unknown whether the instance ends")
        self._tell(lambda: self._gone(manager, state, is_over=is_over))

    def _gone(self, manager: ManagerRecord, state: ManagerState, *, is_over: bool = False) -> None:
        """Forget a manager whose job has ended, when it was in this state.

        If the instance `is_over`, what it ran is for the next start.
        """
        manager_id = manager.manager_id
        if self._managers.pop(manager_id, None) is None:
            return  # it was given up meanwhile
        self._stopping |= is_over
        if (error := error_of(manager.job)) is not None and not hasattr(error, "severity"):
            # Its job may go on, where nobody gets to know of its end; what it held is run again.
            self._launcher.cancel(manager.job, "it can't be followed any more")
        why = end_of_job(manager.job)
        if state == "starting" and not self._stopping:
            self._start_failed(manager_id, why)
        elif state in {"ready", "draining"} and not self._stopping:
            logs.event(log, logging.WARNING, "workers lost", host=manager.host, reason=why)
            self._delay_next_start()
        if state == "stopping" or self._stopping:
            self._launcher.forget(manager_id)
        if not self._stopping:
            self._give_back(manager, f"the workers of {manager.host or 'a node'} ended: {why}")

    def _give_back(self, manager: ManagerRecord, reason: str) -> None:
        """Deal with what a lost manager held: the rest of its tasks had not been started.

        They are started in the order in which they came, so no more than the first of them, one for
        each worker, can have been running.
        """
        held = list(manager.tasks.values())
        for task_id, entry in manager.tasks.items():
            entry.started = self._running.pop(task_id, None)
        for entry in reversed(held[manager.workers :]):
            self._waiting.requeue(entry)
        for entry in reversed(held[: manager.workers]):
            self._waiting.retry_or_fail(entry, reason)

    def _lose(self, reason: str) -> None:
        """Give every manager up; what has not been started, or may be again, is kept."""
        self._receive()
        self._stopping = True
        for manager in self._managers.values():
            self._launcher.send(manager.manager_id, [b"stop"])
            self._give_back(manager, f"{reason}, while the task ran")
            self._launcher.forget(manager.manager_id)
            if not self._backend.is_lost(None):
                self._launcher.cancel(manager.job)
        self._managers.clear()
        self._waiting.leave_all()
        self._drained.set()

    def _delay_next_start(self) -> None:
        self._failures += 1
        delay = min(_LAST_BACKOFF, _FIRST_BACKOFF * 2 ** (self._failures - 1))
        self._not_before = time.monotonic() + delay

    def _start_failed(self, manager_id: str, why: str) -> None:
        self._delay_next_start()
        self._not_started = why
        tail = self._launcher.log_tail(manager_id)
        logs.event(log, logging.ERROR, "workers did not start", reason=why, log=tail)
        if self._failures < _MOST_FAILURES:
            return
        self._waiting.fail_all(
            f"EngineError: no workers could be started in {self._failures} attempts: {why}\n{tail}"
        )


def _eligible(manager: ManagerRecord) -> None:
    manager.eligible_at = time.monotonic()
