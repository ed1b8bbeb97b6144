"""Starts and ends managers: their jobs, why these end, and what becomes of the managers' tasks."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from flux_endpoint import logs
from flux_endpoint.backoff import Backoff
from flux_endpoint.engine.backend import Backend
from flux_endpoint.engine.demand import Amount, placement_of
from flux_endpoint.engine.instance_state import Fate, InstanceState
from flux_endpoint.engine.outcome import end_of_job, error_of, has_timed_out, was_cancelled
from flux_endpoint.engine.workers.backlog import TaskBacklog
from flux_endpoint.engine.workers.book import ManagerRecord, Send, StartTimes, TaskBook
from flux_endpoint.engine.workers.launch import FoundManager, ManagerLauncher
from flux_endpoint.engine.workers.manager_registry import ManagerRegistry
from flux_endpoint.engine.workers.sizing import Piece
from flux_endpoint.engine.workers.spool import SpooledEnd
from flux_endpoint.engine.workers.states import ManagerChange, ManagerState
from flux_endpoint.protocol.job_events import EventRecord

log = logging.getLogger(__name__)

#: Seconds before a failed start is retried: the first delay, doubled up to the last.
_FIRST_BACKOFF, _LAST_BACKOFF = 0.5, 30.0
#: After this many failed starts in a row, the waiting tasks fail.
_MAX_FAILED_STARTS = 4
#: Seconds that managers have to end before their jobs are cancelled, then before they are given up.
_END_TIMEOUT, _CANCEL_TIMEOUT = 3.0, 15.0
#: Seconds after the end of its job within which a manager has ended on any node, and the same if
#: the whole instance is gone.
_DEAD_AFTER, _DEAD_WITH_INSTANCE = 15.0, 3.0


class StartAttempts:
    """The latest attempts to start managers, and the pause before the next one."""

    def __init__(self) -> None:
        self._pauses = Backoff(_FIRST_BACKOFF, _LAST_BACKOFF, jitter=0)
        #: Why the latest managers did not start; empty once one has.
        self.failure = ""
        #: Monotonic time before which no manager is started.
        self.not_before = 0.0

    @property
    def failed(self) -> int:
        """Number of failed attempts in a row."""
        return self._pauses.failures

    def delay(self) -> None:
        """Delay the next start, each time longer."""
        self.not_before = time.monotonic() + next(self._pauses)

    def fail(self, why: str) -> None:
        """Record that a manager did not start."""
        self.delay()
        self.failure = why

    def succeed(self) -> None:
        """Record that a manager has come up."""
        self._pauses.reset()
        self.failure = ""


class PoolStop:
    """The progress of the pool's stop: no starts, then the end of all tasks, then that of managers.

    Attributes:
        is_stopping: whether no more tasks and managers are started.
        drained: set once no task runs any more, or when the running ones should end.
        cancel_at: monotonic time at which the jobs of remaining managers are cancelled.
        give_up_at: monotonic time at which these managers are given up.
    """

    def __init__(self) -> None:
        self.is_stopping = False
        self.drained = threading.Event()
        self.cancel_at = self.give_up_at = math.inf

    def hold(self) -> None:
        """Start no more tasks and managers."""
        self.is_stopping = True

    def end_managers(self) -> None:
        """Begin to end all managers."""
        self.drained.set()
        self.cancel_at = time.monotonic() + _END_TIMEOUT

    def is_due(self, now: float) -> bool:
        """Return whether the jobs of remaining managers should be cancelled, once."""
        if now < self.cancel_at:
            return False
        self.cancel_at, self.give_up_at = math.inf, now + _CANCEL_TIMEOUT
        return True


class ManagerLifecycle:
    """Starts managers and handles their ends. Used by the pool's thread only.

    Args:
        backend: where their jobs run.
        launcher: submits their jobs.
        registry: all managers.
        book: the tasks that managers have.
        waiting: the tasks that no manager has.
        send: sends a message to a manager.
        tell: calls a function on the pool's thread.
        on_job_end: called there with the id of a manager whose job has ended.
        on_gone: called with the ends that a lost manager has left on disk.
        instance: state of the Flux instance.
    """

    def __init__(
        self,
        backend: Backend,
        launcher: ManagerLauncher,
        registry: ManagerRegistry,
        book: TaskBook,
        waiting: TaskBacklog,
        *,
        send: Send,
        tell: Callable[[Callable[[], None]], None],
        on_job_end: Callable[[str], None],
        on_gone: Callable[[ManagerRecord, list[SpooledEnd]], None],
        instance: InstanceState,
    ) -> None:
        self._backend = backend
        self._launcher = launcher
        self._registry = registry
        self._book = book
        self._waiting = waiting
        self._send = send
        self._tell = tell
        self._on_job_end = on_job_end
        self._on_gone = on_gone
        self._instance = instance
        self.starts = StartAttempts()
        self.stopping = PoolStop()
        self._questions = ThreadPoolExecutor(1, thread_name_prefix="pool-questions")

    @property
    def _managers(self) -> dict[str, ManagerRecord]:
        return self._registry.managers

    def find(self) -> tuple[list[FoundManager], list[SpooledEnd]]:
        """Return the managers from before a restart, and the ends that others left on disk.

        Raises:
            EngineError: Flux does not list the managers.
        """
        return self._launcher.find()

    def close(self) -> None:
        """Stop the thread that asks Flux for reasons."""
        self._questions.shutdown(wait=False, cancel_futures=True)

    def moments(self, now: float) -> Iterator[float]:
        """Yield the monotonic times at which something is due."""
        yield from (self.stopping.cancel_at, self.stopping.give_up_at)
        if self.starts.not_before > now:
            yield self.starts.not_before
        yield from (manager.end.dead_at for manager in self._managers.values())

    def expire(self, now: float) -> None:
        """Cancel the jobs of managers that did not end in time; treat silent ones as dead."""
        for manager in [m for m in self._managers.values() if now >= m.end.dead_at]:
            self._forget(manager)
        if not self.stopping.is_due(now):
            return
        for manager in self._managers.values():
            logs.event(
                log,
                logging.WARNING,
                "workers did not exit in time; cancelling their job",
                host=manager.host,
            )
            self._launcher.cancel(manager.job)

    # Starting

    def start(self, piece: Piece) -> bool:
        """Start a manager; return whether its job could be submitted."""
        manager_id = secrets.token_hex(4)
        try:
            job = self._launcher.launch(
                manager_id, piece.workers, self._registry.urgency, permanent=piece.permanent
            )
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            if not self._backend.is_lost(error):
                self._start_failed(manager_id, f"their job can't be submitted: {error}")
                self._launcher.forget(manager_id, failed=True)
            return False
        manager = ManagerRecord(
            manager_id,
            piece.workers,
            job,
            StartTimes(time.monotonic()),
            permanent=piece.permanent,
            amount=self._launcher.amount(piece.workers),
        )
        self._follow(manager)
        return True

    def adopt(self, found: FoundManager) -> None:
        """Take over a manager from before a restart."""
        note, now = found.note, time.monotonic()
        logs.event(log, logging.INFO, "workers found", manager=found.manager_id)
        manager = ManagerRecord(
            found.manager_id,
            note.workers,
            found.job,
            StartTimes(now, eligible=now, allocated=now),
            permanent=note.permanent and found.is_current,
            amount=Amount(note.cores, note.gpus),
            state=ManagerState.FOUND,
            is_current=found.is_current,
        )
        self._follow(manager)

    def _follow(self, manager: ManagerRecord) -> None:
        job, manager_id = manager.job, manager.manager_id
        self._managers[manager_id] = manager
        job.add_event_callback("priority", lambda _, __: self._tell(lambda: _eligible(manager)))
        job.add_event_callback(
            "alloc", lambda _, event: self._tell(partial(self._allocated, manager, event))
        )
        job.add_event_callback("clean", lambda _, __: self._tell(lambda: self._cleaned(manager)))
        job.add_done_callback(lambda _: self._tell(lambda: self._on_job_end(manager_id)))

    def _allocated(self, manager: ManagerRecord, event: EventRecord) -> None:
        self._registry.allocated(manager, next(iter(placement_of(event.context)), ""))

    def greeted(self, manager: ManagerRecord, host: str) -> None:
        """Record that a manager is up."""
        outdated = not manager.is_current
        manager.change(ManagerChange.OUTDATED_GREETING if outdated else ManagerChange.GREETING)
        manager.host = host
        manager.activity.idle_since = manager.times.greeted = time.monotonic()
        self.starts.succeed()
        logs.event(
            log,
            logging.INFO,
            "workers ready",
            host=host,
            workers=manager.workers,
            manager=manager.manager_id,
        )

    def _start_failed(self, manager_id: str, why: str) -> None:
        self.starts.fail(why)
        tail = self._launcher.log_tail(manager_id)
        logs.event(log, logging.ERROR, "workers did not start", reason=why, log=tail)
        failures = self.starts.failed
        if failures < _MAX_FAILED_STARTS:
            return
        self._waiting.fail_all(
            f"EngineError: no workers could be started in {failures} attempts: {why}\n{tail}"
        )

    # Ending on request

    def withdraw(self, manager: ManagerRecord, note: str) -> None:
        """Cancel a manager that is not up yet."""
        manager.change(ManagerChange.STOP)
        self._launcher.cancel(manager.job, note)

    def stop(self, manager: ManagerRecord) -> None:
        """End an idle manager."""
        manager.change(ManagerChange.STOP)
        self._send(manager.manager_id, [b"stop"])

    def stop_all(self) -> None:
        """End all managers and their tasks; jobs of managers that are not up yet are cancelled."""
        self.stopping.end_managers()
        for manager in self._managers.values():
            if manager.state is ManagerState.STARTING:
                self._launcher.cancel(manager.job)
            elif manager.state is ManagerState.FOUND or manager.state.is_serving:
                self.stop(manager)

    def lose(self, reason: str) -> None:
        """Give up all managers, because the instance is gone or its time is over.

        Tasks that have not started, or may be retried, are left to others.
        """
        self.stopping.hold()
        self._waiting.close()
        for manager in list(self._managers.values()):
            if not self._backend.is_lost(None):
                self._launcher.cancel(manager.job)
            self._await_end(manager, f"{reason}, while the task ran", _DEAD_WITH_INSTANCE)

    def give_up(self, manager: ManagerRecord, why: str) -> None:
        """End a manager that does not answer."""
        logs.event(log, logging.WARNING, why, manager=manager.manager_id)
        self._launcher.cancel(manager.job, why)
        self._await_end(manager, why, 2 * _DEAD_AFTER)

    # Unrequested ends

    def said_bye(self, manager: ManagerRecord, ran: dict[str, float]) -> None:
        """Handle a manager's announcement that it ends: tasks that it has not begun are queued."""
        manager.end.ran = ran
        if manager.state is ManagerState.OVER:
            self._forget(manager)
        elif manager.state.is_serving:
            manager.change(ManagerChange.BYE)
            manager.end.why = f"the workers of {manager.host or 'a node'} ended"
            manager.end.dead_at = time.monotonic() + 2 * _DEAD_AFTER  # if its job's end is not seen
            if not self.stopping.is_stopping:
                self._book.keep_only(manager, ran)

    def job_ended(self, manager: ManagerRecord) -> None:
        """Handle the end of a manager's job; all of its messages were received before."""
        error = error_of(manager.job)
        if self._backend.is_lost(error) or manager.state is ManagerState.OVER:
            return  # this or every manager is given up already
        unasked = not (self.stopping.is_stopping or manager.state is ManagerState.STOPPING)
        if (was_cancelled(error) and unasked) or has_timed_out(error):
            # Perhaps the instance has ended it. Another thread asks, since the answer may be slow.
            state = manager.state
            manager.change(ManagerChange.JOB_ENDED)
            self._questions.submit(self._ask_for_reason, manager, state, error)
        else:
            self._end(manager, manager.state)

    def _cleaned(self, manager: ManagerRecord) -> None:
        """Handle the `clean` event: Flux has ended all processes of a job that it can reach."""
        manager.end.is_clean = True
        if manager.state is ManagerState.OVER and manager.is_known_dead:
            self._forget(manager)

    def _ask_for_reason(
        self, manager: ManagerRecord, state: ManagerState, error: BaseException | None
    ) -> None:
        """Find out why a manager's job has ended. Runs on its own thread."""
        fate = Fate.OWN_END
        try:
            fate = self._instance.fate()
        except Exception:
            log.exception("can't tell whether the instance is ending")
        if fate is Fate.AWAITS_LOSS and was_cancelled(error):
            return  # all of them are given up together
        self._tell(lambda: self._end(manager, state, is_over=fate is Fate.LEFT))

    def _end(self, manager: ManagerRecord, state: ManagerState, *, is_over: bool = False) -> None:
        """Handle the end of the job of a manager that was in `state`.

        If the instance `is_over`, the manager's running tasks are left for the next engine.
        """
        if manager.manager_id not in self._managers or manager.state is ManagerState.OVER:
            return  # it was given up in the meantime
        if is_over:
            self.stopping.hold()
        error = error_of(manager.job)
        if error is not None and not hasattr(error, "severity"):
            # Its job may still run, but its end could not be seen.
            self._launcher.cancel(manager.job, "it can't be followed any more")
        why = end_of_job(manager.job)
        manager.end.why = f"the workers of {manager.host or 'a node'} ended: {why}"
        if state is ManagerState.STARTING and not self.stopping.is_stopping:
            manager.change(ManagerChange.GIVE_UP)
            self._start_failed(manager.manager_id, why)
        elif (state.is_serving or state is ManagerState.LEAVING) and not self.stopping.is_stopping:
            logs.event(log, logging.WARNING, "workers lost", host=manager.host, reason=why)
            self.starts.delay()
        # Flux gives up a job whose node it has lost, whether the job's processes live or not.
        has_come = state is ManagerState.FOUND or state.is_serving
        if error is not None and manager.end.ran is None and has_come:
            self._await_end(manager, manager.end.why, _DEAD_AFTER)
        else:
            self._forget(manager, failed=state not in (ManagerState.STOPPING, ManagerState.FOUND))

    def _await_end(self, manager: ManagerRecord, why: str, timeout: float) -> None:
        """Tell a manager that is given up to end; until then, its running tasks are not retried."""
        has_come = manager.has_come
        manager.change(ManagerChange.GIVE_UP)
        manager.end.why = why
        manager.end.dead_at = time.monotonic() + timeout
        self._send(manager.manager_id, [b"stop"])
        if manager.end.ran is not None or not has_come or manager.is_known_dead:
            self._forget(manager)

    def _forget(self, manager: ManagerRecord, *, failed: bool = True) -> None:
        """Forget a manager whose processes have ended, and handle its tasks."""
        manager_id = manager.manager_id
        if self._managers.pop(manager_id, None) is None:
            return
        manager.change(ManagerChange.DEAD)
        ends = list(self._launcher.spooled(manager_id))
        self._on_gone(manager, ends)
        if self._instance.now.is_lost or not self.stopping.is_stopping:
            begun: Container[str] | None = manager.end.ran
            if begun is None:
                begun = self._launcher.begun(manager_id)
            self._book.give_back(manager, begun, manager.end.why)
        failed = failed and not self.stopping.is_stopping
        self._launcher.forget(manager_id, failed=failed, spool=not ends)


def _eligible(manager: ManagerRecord) -> None:
    manager.times.eligible = time.monotonic()
