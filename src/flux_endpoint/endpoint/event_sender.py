"""Sends job events to the service: in batches, without a journal."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any
from uuid import UUID

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.endpoint.outbox import PublishTarget
from flux_endpoint.endpoint.retries import attempt_of, task_of
from flux_endpoint.engine.base import EngineEvent
from flux_endpoint.errors import PublishError
from flux_endpoint.logs import event
from flux_endpoint.protocol.job_events import OUTPUT_EVENT
from flux_endpoint.protocol.limits import MAX_OUTPUT
from flux_endpoint.protocol.messages import TaskEvent, TaskEvents, pack
from flux_endpoint.protocol.queues import PublishInfo

log = logging.getLogger(__name__)

#: The most batches that may await their confirms; beyond that, job events are dropped.
MAX_UNDER_WAY = 100
#: The most characters of followed tasks' output in a message, which brokers limit, and in all that
#: await their confirms. Beyond that, output is dropped: a follower sees how much is missing.
_MOST_OF_MESSAGE = 2 * MAX_OUTPUT
_MOST_OUTPUT = 16 << 20


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
        #: The batches that await their confirms, and the characters of output in each.
        self._under_way: list[tuple[Future[None], int]] = []
        self._dropped = 0

    def send(self, events: Sequence[EngineEvent]) -> None:
        """Publish job events: in one message, unless there is much output of followed tasks."""
        if self._target is None or not events:
            return
        self._under_way = [each for each in self._under_way if not each[0].done()]
        room = _MOST_OUTPUT - sum(size for _, size in self._under_way)
        for batch, size in _batches(events):
            if size <= room:
                room -= size
                self._publish(self._target, batch, size)
            else:
                others = [each for each in batch if each.name != OUTPUT_EVENT]
                self._publish(self._target, others, 0)

    def _publish(self, target: PublishTarget, events: Sequence[EngineEvent], size: int) -> None:
        if not events:
            return
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
                    context=_context(each),
                )
                for each in events
            ]
        )
        try:
            self._under_way.append((target.publish(self._connection, pack(message)), size))
        except PublishError:
            event(log, logging.DEBUG, "job events not sent: the connection is closed")


def _batches(events: Iterable[EngineEvent]) -> Iterator[tuple[list[EngineEvent], int]]:
    """Yield events for one message each, and the characters of output in them."""
    batch: list[EngineEvent] = []
    size = 0
    for each in events:
        more = _output_in(each)
        if size + more > _MOST_OF_MESSAGE and batch:
            yield batch, size
            batch, size = [], 0
        batch.append(each)
        size += more
    yield batch, size


def _output_in(event: EngineEvent) -> int:
    if event.name != OUTPUT_EVENT:
        return 0
    return sum(len(text) for _, _, text in event.context.values())


def _context(each: EngineEvent) -> dict[str, Any]:
    """Return an event's context; that of output says of which attempt it is."""
    if each.name != OUTPUT_EVENT:
        return each.context
    return {**each.context, "attempt": attempt_of(each.task_id)}
