"""Which tasks are at this endpoint, and what messages and results mean for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

from flux_endpoint.amqp import Delivery
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.inbox_events import Turn
from flux_endpoint.endpoint.intake import RefusedTask, cancelled_before_it_came, read_task
from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.endpoint.outbox import ResultOutbox
from flux_endpoint.endpoint.retries import Attempts, Retries, task_of
from flux_endpoint.endpoint.task_records import TaskRecords
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.errors import InvalidMessageError
from flux_endpoint.logs import event
from flux_endpoint.protocol.job_events import ATTEMPT_FAILED
from flux_endpoint.protocol.messages import TaskKill

log = logging.getLogger(__name__)


class TasksInFlight:
    """Decides what a turn has to record and to do. Used by the agent's thread only.

    Args:
        endpoint_id: the endpoint's UUID.
        config: the endpoint's configuration.
        journal: tasks that are accepted, and results that are not confirmed.
        outbox: results on their way to the broker.
        records: who had which task run, for logs and audit.
    """

    def __init__(
        self,
        endpoint_id: str,
        config: EndpointConfig,
        journal: Journal,
        outbox: ResultOutbox,
        records: TaskRecords,
    ) -> None:
        self._endpoint_id = endpoint_id
        self._config = config
        allowed = config.allowed_functions
        self._allowed = None if allowed is None else frozenset(allowed)
        self._journal = journal
        self._outbox = outbox
        self._records = records
        #: Tasks that were accepted and have no result yet.
        self.running: set[str] = set()
        #: Those of them that may have several attempts.
        self.retries = Retries()

    def received(self, deliveries: list[Delivery], turn: Turn) -> None:
        """Sort new tasks from those that the broker delivers again.

        Args:
            deliveries: messages of the task queue; one that can't be read is rejected.
            turn: gets what is to be recorded and acknowledged.
        """
        fresh: dict[str, tuple[Delivery, EngineTask | RefusedTask]] = {}
        # A task that this turn ends has left `running`, and the journal does not have its end yet.
        ending = {result.task_id for result in turn.finished}.union(turn.confirmed)
        for delivery in deliveries:
            task = self._read(delivery)
            if task is None:
                delivery.reject()
            elif any(task.task_id in each for each in (fresh, self.running, self._outbox, ending)):
                event(log, logging.DEBUG, "task redelivered", task_id=task.task_id)
                turn.answered.append(delivery)
                self._outbox.hurry(task.task_id)
            else:
                fresh[task.task_id] = (delivery, task)
        if not fresh:
            return
        done = self._journal.done(list(fresh))
        self._records.received(
            (task, delivery.headers)
            for task_id, (delivery, task) in fresh.items()
            if task_id not in done
        )
        for task_id, (delivery, task) in fresh.items():
            turn.answered.append(delivery)
            if task_id in done:
                event(log, logging.DEBUG, "finished task redelivered", task_id=task_id)
            elif isinstance(task, RefusedTask):
                event(log, logging.WARNING, "task refused", task_id=task_id, reason=task.reason)
                turn.finished.append(task.result)
            else:
                self.running.add(task_id)
                self.retries.accepted(task)
                turn.accepted.append(task)

    def _read(self, delivery: Delivery) -> EngineTask | RefusedTask | None:
        try:
            return read_task(
                delivery.body,
                delivery.headers,
                endpoint_id=self._endpoint_id,
                allowed_functions=self._allowed,
                allowed_environment=self._config.allowed_environment,
                plain_programs=self._config.plain_programs,
            )
        except InvalidMessageError as error:
            event(
                log,
                logging.ERROR,
                "task message dead-lettered",
                message_id=delivery.message_id,
                headers={key: str(value)[:100] for key, value in delivery.headers.items()},
                reason=str(error),
            )
            return None

    def finished(self, result: EngineResult, turn: Turn) -> None:
        """Take a result of the engine; a second one for the same task is dropped."""
        task_id = task_of(result.task_id)
        end: Attempts | EngineResult | None = result
        if task_id in self.retries:
            end = self.retries.ended(result)
        if end is None or task_id not in self.running:
            event(log, logging.WARNING, "duplicate result dropped", task_id=result.task_id)
            turn.repeated.append(result.task_id)
        elif isinstance(end, Attempts):
            self._failed(end, turn)
            turn.repeated.append(result.task_id)
        else:
            self.running.remove(task_id)
            turn.finished.append(end)
            if task_id != result.task_id:
                turn.repeated.append(result.task_id)

    def _failed(self, attempts: Attempts, turn: Turn) -> None:
        """Record a failed attempt, after which there is another one."""
        now, number = time.time(), len(attempts.failures)
        pause = round((attempts.due or now) - now, 3)
        about = {"attempt": number, "reason": attempts.failures[-1], "retry_in": pause}
        event(log, logging.INFO, "an attempt failed", task_id=attempts.task_id, **about)
        turn.attempts.append(attempts)
        turn.job_events.append(EngineEvent(attempts.task_id, None, ATTEMPT_FAILED, now, about))

    def begin_due(self, turn: Turn) -> None:
        """Begin the attempts that are due."""
        for attempts in self.retries.take_due(time.monotonic()):
            task = self._journal.task(attempts.task_id)
            turn.attempts.append(attempts)
            turn.begun.append(replace(task, task_id=attempts.engine_id))

    def recover(self) -> Iterator[EngineTask]:
        """Yield the unfinished tasks of an earlier agent that its engine had, or was to have."""
        self.retries.recovered(self._journal.attempts())
        for task in self._journal.pending():
            self.running.add(task.task_id)
            attempt = self.retries.to_run(task)
            if attempt is not None:
                yield attempt

    def kill(self, request: TaskKill, turn: Turn) -> None:
        """Have a running task end; a task that has not arrived ends before it can start."""
        task_id = str(request.task_id)
        event(log, logging.INFO, "asked to end a task", task_id=task_id, signum=request.signum)
        if task_id in self.running:
            self._kill(task_id, request.signum, turn)
        elif request.signum is None and not self._has_ended(task_id, turn):
            turn.finished.append(cancelled_before_it_came(task_id).result)

    def _kill(self, task_id: str, signum: int | None, turn: Turn) -> None:
        engine_id = self.retries.engine_id(task_id)
        if engine_id is not None:
            turn.kills.append((engine_id, signum))
        if signum is None and task_id in self.retries:
            end = self.retries.killed(task_id)
            if isinstance(end, Attempts):
                turn.attempts.append(end)
            else:
                self.running.remove(task_id)
                turn.finished.append(end)

    def _has_ended(self, task_id: str, turn: Turn) -> bool:
        # The journal does not have yet what this turn ends or confirms.
        ending = any(result.task_id == task_id for result in turn.finished)
        ending = ending or task_id in turn.confirmed
        return ending or task_id in self._outbox or bool(self._journal.done([task_id]))
