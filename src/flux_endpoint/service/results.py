"""Results on their way back: stored, forwarded to their task group, then acknowledged.

The first result of a task wins, except that one of its endpoint replaces a failure that the service
had presumed. A result is acknowledged when the store has committed and the broker has confirmed the
forward.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID

from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.errors import InvalidMessageError, PublishError, UnroutableError
from flux_endpoint.logs import event
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.fields import MAX_NANOSECONDS
from flux_endpoint.protocol.messages import VERSION_BYTE, Result, unpack
from flux_endpoint.protocol.states import ActorName, TaskState
from flux_endpoint.service.consumer import BatchConsumer
from flux_endpoint.service.failures import PRESUMED_HEADER
from flux_endpoint.service.store import deliveries, listing, tasks
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

#: Deliveries that the broker may have sent us and we have not acknowledged. They are in memory, and
#: each may have 10 MiB of value.
PREFETCH = 64

#: Header of a result that the service itself made, and stores while it is on its way: it is
#: forwarded although it is known.
STORED_HEADER = "stored_by_service"

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
    forward: list[tuple[_Received, tasks.Route]] = field(default_factory=list)


class ResultConsumer(BatchConsumer[_Received, _Stored]):
    """Consumes the queue `results`.

    Args:
        database: where results are stored.
        connection: the way to the broker.
        on_ended: told the endpoints of batches with tasks that waited for delivery.
        on_stored: told how many bytes the results of a batch have.
    """

    def __init__(
        self,
        database: Database,
        connection: AmqpConnection,
        on_ended: Callable[[frozenset[str]], None],
        on_stored: Callable[[int], None],
    ) -> None:
        super().__init__(connection, queues.RESULTS_QUEUE, noun="result", prefetch=PREFETCH)
        self._database = database
        self._on_ended = on_ended
        self._on_stored = on_stored

    def read(self, delivery: Delivery) -> _Received:
        """Return the outcome in a result message."""
        outcome = _parse(delivery.body)
        if delivery.headers.get(PRESUMED_HEADER):
            outcome = replace(outcome, presumed=True)
        return _Received(delivery, outcome)

    def store(self, received: Sequence[_Received]) -> _Stored:
        """Store the first result of each task."""
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
                elif task_id in accepted and not _replaces(each, accepted[task_id].outcome):
                    stored.dropped.append(delivery)
                elif not route.ended or _replaces(each, route):
                    accepted[task_id] = each
                    stored.forward.append((each, route))
                elif (delivery.redelivered or delivery.headers.get(STORED_HEADER)) and (
                    tasks.stored_result(connection, task_id) == each.outcome.data
                ):
                    # Perhaps we ended after it was stored and before it was forwarded.
                    stored.forward.append((each, route))
                else:
                    stored.dropped.append(delivery)
            tasks.complete(connection, [each.outcome for each in accepted.values()], known)
            waited = deliveries.remove(connection, accepted)
        self._on_stored(sum(len(each.outcome.data) for each in accepted.values()))
        if waited:
            self._on_ended(frozenset(known[task_id].endpoint_id for task_id in accepted))
        return stored

    def settle(self, stored: _Stored) -> None:
        """Forward the new ones, each acknowledged when the broker has it."""
        for delivery in stored.dropped:
            delivery.ack()
        for delivery in stored.strays:
            self.set_aside(delivery, "its task belongs to another endpoint")
        for received, route in stored.forward:
            # To the queue of each client of the group; the broker multiplies it.
            forwarded = self._publish(queues.TASK_GROUPS_EXCHANGE, received, route)
            forwarded.add_done_callback(partial(self._forwarded, received, route))

    def _publish(self, exchange: str, received: _Received, route: tasks.Route) -> Future[None]:
        return self.connection.publish(
            exchange,
            queues.task_group_key(route.group_id),
            received.delivery.body,
            timestamp=int(received.outcome.completed_at),
        )

    def _forwarded(self, received: _Received, route: tasks.Route, done: Future[None]) -> None:
        if isinstance(done.exception(), UnroutableError) and route.create_queue:
            # An earlier release made the group's queue, and did not bind it.
            with suppress(PublishError):  # closed: the next service gets the result again
                directly = self._publish("", received, route)
                directly.add_done_callback(partial(_acknowledge, received.delivery))
        else:
            _acknowledge(received.delivery, done)


def _replaces(received: _Received, earlier: tasks.Route | tasks.Outcome) -> bool:
    return earlier.presumed and not received.outcome.presumed


def _acknowledge(delivery: Delivery, forwarded: Future[None]) -> None:
    error = forwarded.exception()
    # No queue: nobody consumes that group. REST has the result.
    if error is None or isinstance(error, UnroutableError):
        delivery.ack()
    else:
        event(log, logging.WARNING, "result not forwarded", reason=error)


def _parse(body: bytes) -> tasks.Outcome:
    """Return the outcome in a result message: `messages.unpack` without the cost of a model."""
    try:
        envelope: Any = json.loads(body[1:]) if body[:1] == VERSION_BYTE else None
        if envelope["message_type"] == Result.message_type and _is_plain(envelope["data"]):
            return _outcome(str(UUID(envelope["data"]["task_id"])), envelope["data"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    message = unpack(body)
    if not isinstance(message, Result):
        raise InvalidMessageError(f"expected a result, got a {message.message_type} message")
    return _outcome(str(message.task_id), vars(message) | _dumped(message))


def _dumped(result: Result) -> dict[str, Any]:
    statuses = result.task_statuses
    return {"task_statuses": statuses and [each.model_dump(mode="json") for each in statuses]}


def _is_plain(data: dict[str, Any]) -> bool:
    """Whether `data` is valid without any conversion; else the model decides."""
    error = data.get("error_details")
    details = data.get("details")
    return (
        isinstance(data["data"], str)
        and isinstance(details, dict | None)
        and all(map(_is_scalar, (details or {}).values()))
        and (
            error is None
            or (isinstance(error["code"], str) and isinstance(error["user_message"], str))
        )
        and all(
            isinstance(each["timestamp"], int)
            and 0 <= each["timestamp"] < MAX_NANOSECONDS
            and each["state"] in _STATES
            and each["actor"] in _ACTORS
            for each in data.get("task_statuses") or ()
        )
    )


def _is_scalar(value: object) -> bool:
    is_number = isinstance(value, int) and abs(value) < MAX_NANOSECONDS
    return is_number or isinstance(value, str | float | None)


def _outcome(task_id: str, data: dict[str, Any]) -> tasks.Outcome:
    return tasks.Outcome(
        task_id=task_id,
        failed=data.get("error_details") is not None,
        data=data["data"],
        details=_details(data),
        completed_at=time.time(),
    )


def _details(data: dict[str, Any]) -> dict[str, Any] | None:
    """Return a result's details, with the times of its states in milliseconds."""
    transitions = data.get("task_statuses")
    if not transitions:
        return data.get("details")
    told = {each["state"]: each["timestamp"] // 1_000_000 for each in transitions}
    return {**(data.get("details") or {}), listing.TRANSITIONS: told}
