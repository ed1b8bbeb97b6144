"""Results on their way back: stored, forwarded to their task group, then acknowledged.

The connection's thread only hands deliveries over. One thread drains what is there, stores it in
one transaction (the first result of a task wins), forwards each new one, and acknowledges when the
store has committed and the broker has confirmed the forward.
"""

import json
import logging
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy.exc import InterfaceError, OperationalError

from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.errors import InvalidMessageError, UnroutableError
from flux_endpoint.logs import event
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.messages import VERSION_BYTE, Result, unpack
from flux_endpoint.protocol.states import ActorName, TaskState
from flux_endpoint.service.store import tasks
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

#: Deliveries that the broker may have sent us and we have not acknowledged.
PREFETCH = 256

# One transaction takes no more than this many bytes of results (and at least one result).
_BATCH_BYTES = 32 * 2**20
_MAX_BACKOFF = 10.0
_STATES = frozenset(TaskState)
_ACTORS = frozenset(ActorName)


@dataclass(frozen=True)
class _Received:
    delivery: Delivery
    outcome: tasks.Outcome


@dataclass(frozen=True)
class _Stored:
    """What is to be done with the deliveries of a committed transaction."""

    dropped: list[Delivery] = field(default_factory=list)
    strays: list[Delivery] = field(default_factory=list)
    forward: list[tuple[_Received, str]] = field(default_factory=list)  # with the group's id


class ResultConsumer:
    """Consumes the queue `results`; everything but `close` runs on its own thread."""

    def __init__(self, database: Database, connection: AmqpConnection) -> None:
        self._database = database
        self._connection = connection
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="results", daemon=True)

    def start(self) -> None:
        """Begin to consume."""
        self._thread.start()
        self._connection.consume(queues.RESULTS_QUEUE, self._inbox.put, prefetch=PREFETCH)

    def close(self, timeout: float = 5.0) -> None:
        """Stop; what was not acknowledged is delivered again to the next service."""
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while batch := self._take():
            received = [each for delivery in batch if (each := _read(delivery))]
            for stored in self._store_with_retries(received):
                self._settle(stored)

    def _take(self) -> list[Delivery]:
        """Wait for deliveries and return what is there; nothing once we are closed."""
        batch: list[Delivery] = []
        size = 0
        while not self._stopping.is_set() and size < _BATCH_BYTES:
            if batch and self._inbox.empty():
                break
            delivery = self._inbox.get()
            if delivery is not None:
                batch.append(delivery)
                size += len(delivery.body)
        return [] if self._stopping.is_set() else batch

    def _store_with_retries(self, received: Sequence[_Received]) -> Iterator[_Stored]:
        delay = 0.1
        while received and not self._stopping.is_set():
            try:
                stored = self._store(received)
            except (OperationalError, InterfaceError) as error:
                # The database is busy, full or away: that passes.
                event(log, logging.ERROR, "results not stored", reason=error, retry_in=delay)
                self._stopping.wait(delay * random.uniform(0.5, 1))  # noqa: S311
                delay = min(delay * 2, _MAX_BACKOFF)
            except Exception as error:
                if len(received) == 1:
                    log.exception("result can't be stored")
                    _set_aside(received[0].delivery, f"it can't be stored: {error}")
                    return
                for each in received:  # one of them is poison: find out which
                    yield from self._store_with_retries([each])
                return
            else:
                yield stored
                return

    def _store(self, received: Sequence[_Received]) -> _Stored:
        accepted: dict[str, _Received] = {}
        stored = _Stored()
        with self._database.write() as connection:
            known = tasks.routes(connection, {each.outcome.task_id for each in received})
            for each in received:
                task_id, delivery = each.outcome.task_id, each.delivery
                route = known.get(task_id)
                if route is None:
                    event(log, logging.WARNING, "result of an unknown task", task_id=task_id)
                    stored.dropped.append(delivery)
                elif delivery.routing_key != queues.results_key(route.endpoint_id):
                    stored.strays.append(delivery)
                elif task_id in accepted:
                    stored.dropped.append(delivery)
                elif not route.ended:
                    accepted[task_id] = each
                    stored.forward.append((each, route.group_id))
                elif delivery.redelivered and (
                    tasks.stored_result(connection, task_id) == each.outcome.data
                ):
                    # Perhaps we ended after it was stored and before it was forwarded.
                    stored.forward.append((each, route.group_id))
                else:
                    stored.dropped.append(delivery)
            tasks.complete(connection, [each.outcome for each in accepted.values()])
        return stored

    def _settle(self, stored: _Stored) -> None:
        for delivery in stored.dropped:
            delivery.ack()
        for delivery in stored.strays:
            _set_aside(delivery, "its task belongs to another endpoint")
        for received, group_id in stored.forward:
            forwarded = self._connection.publish(
                "",
                queues.task_group_queue(group_id),
                received.delivery.body,
                timestamp=int(received.outcome.completed_at),
            )
            forwarded.add_done_callback(partial(_acknowledge, received.delivery))


def _acknowledge(delivery: Delivery, forwarded: Future[None]) -> None:
    error = forwarded.exception()
    # No queue: nobody consumes that group. REST has the result.
    if error is None or isinstance(error, UnroutableError):
        delivery.ack()
    else:
        event(log, logging.WARNING, "result not forwarded", reason=error)


def _read(delivery: Delivery) -> _Received | None:
    try:
        return _Received(delivery, _parse(delivery.body))
    except InvalidMessageError as error:
        _set_aside(delivery, str(error))
    return None


def _set_aside(delivery: Delivery, reason: str) -> None:
    event(
        log,
        logging.ERROR,
        "result set aside in the queue dead-letters",
        message_id=delivery.message_id,
        routing_key=delivery.routing_key,
        reason=reason,
    )
    delivery.reject()


def _parse(body: bytes) -> tasks.Outcome:
    """Return the outcome in a result message: `messages.unpack` without the cost of a model."""
    try:
        envelope: Any = json.loads(body[1:]) if body[:1] == VERSION_BYTE else None
        if envelope["message_type"] == Result.message_type and _is_plain(envelope["data"]):
            return _outcome(str(UUID(envelope["data"]["task_id"])), envelope["data"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    try:
        message = unpack(body)
    except RecursionError as error:
        raise InvalidMessageError("message body is nested too deeply") from error
    if not isinstance(message, Result):
        raise InvalidMessageError(f"expected a result, got a {message.message_type} message")
    return _outcome(str(message.task_id), message.model_dump(mode="json"))


def _is_plain(data: dict[str, Any]) -> bool:
    """Whether `data` is valid without any conversion; else the model decides."""
    error = data.get("error_details")
    return (
        isinstance(data["data"], str)
        and isinstance(data.get("details"), dict | None)
        and (
            error is None
            or (isinstance(error["code"], str) and isinstance(error["user_message"], str))
        )
        and all(
            isinstance(each["timestamp"], int)
            and each["state"] in _STATES
            and each["actor"] in _ACTORS
            for each in data.get("task_statuses") or ()
        )
    )


def _outcome(task_id: str, data: dict[str, Any]) -> tasks.Outcome:
    return tasks.Outcome(
        task_id=task_id,
        failed=data.get("error_details") is not None,
        data=data["data"],
        details=data.get("details"),
        completed_at=time.time(),
    )
