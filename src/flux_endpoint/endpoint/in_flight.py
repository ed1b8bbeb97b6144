"""Which tasks are at this endpoint, and what messages and results mean for them."""

from __future__ import annotations

import logging

from flux_endpoint.amqp import Delivery
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.inbox_events import Turn
from flux_endpoint.endpoint.intake import RefusedTask, cancelled_before_it_came, read_task
from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.endpoint.outbox import ResultOutbox
from flux_endpoint.endpoint.task_records import TaskRecords
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.errors import InvalidMessageError
from flux_endpoint.logs import event
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
        if result.task_id in self.running:
            self.running.remove(result.task_id)
            turn.finished.append(result)
        else:
            event(log, logging.WARNING, "duplicate result dropped", task_id=result.task_id)
            turn.repeated.append(result.task_id)

    def kill(self, request: TaskKill, turn: Turn) -> None:
        """Have a running task end; a task that has not arrived ends before it can start."""
        task_id = str(request.task_id)
        event(log, logging.INFO, "asked to end a task", task_id=task_id, signum=request.signum)
        if task_id in self.running:
            turn.kills.append(request)
        elif request.signum is None and not self._has_ended(task_id, turn):
            turn.finished.append(cancelled_before_it_came(task_id).result)

    def _has_ended(self, task_id: str, turn: Turn) -> bool:
        # The journal does not have yet what this turn ends or confirms.
        ending = any(result.task_id == task_id for result in turn.finished)
        ending = ending or task_id in turn.confirmed
        return ending or task_id in self._outbox or bool(self._journal.done([task_id]))
