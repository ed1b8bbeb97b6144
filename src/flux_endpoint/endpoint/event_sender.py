"""Sends job events to the service: in batches, without a journal."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from uuid import UUID

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.endpoint.outbox import PublishTarget
from flux_endpoint.endpoint.retries import task_of
from flux_endpoint.engine.base import EngineEvent
from flux_endpoint.errors import PublishError
from flux_endpoint.logs import event
from flux_endpoint.protocol.messages import TaskEvent, TaskEvents, pack
from flux_endpoint.protocol.queues import PublishInfo

log = logging.getLogger(__name__)

#: The most batches that may await their confirms; beyond that, job events are dropped.
MAX_UNDER_WAY = 100


class EventSender:
    """Publishes job events; belongs to the agent's thread.

    Results never wait for events. Events are not kept: a job that is found again after a restart
    reports all of its events again.

    Args:
        connection: the connection to publish on.
        info: how events are published; `None`: the service takes none.
    """

    def __init__(self, connection: AmqpConnection, info: PublishInfo | None) -> None:
        self._connection = connection
        self._target = None if info is None else PublishTarget(info)
        self._under_way: list[Future[None]] = []
        self._dropped = 0

    def send(self, events: Sequence[EngineEvent]) -> None:
        """Publish job events in one message."""
        if self._target is None or not events:
            return
        self._under_way = [future for future in self._under_way if not future.done()]
        if len(self._under_way) >= MAX_UNDER_WAY:
            self._dropped += len(events)
            if self._dropped == len(events):
                event(log, logging.WARNING, "the broker is slow, job events are dropped")
            return
        self._dropped = 0
        message = TaskEvents(
            events=[
                TaskEvent(
                    task_id=UUID(task_of(each.task_id)),
                    jobid=each.jobid,
                    name=each.name,
                    timestamp=each.timestamp,
                    context=each.context,
                )
                for each in events
            ]
        )
        try:
            self._under_way.append(self._target.publish(self._connection, pack(message)))
        except PublishError:
            event(log, logging.DEBUG, "job events not sent: the connection is closed")
