"""Consumes results: stores them, forwards them to their task groups, then acknowledges them.

The first result of a task wins. There is one exception: a result of the endpoint replaces a failure
that the service has presumed. A result is acknowledged once the transaction is committed and the
broker has confirmed the forwarded message.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.amqp.bundle import CONTENT_TYPE, Part, gather, pack_bundle
from flux_endpoint.errors import InvalidMessageError, PublishError, UnroutableError
from flux_endpoint.logs import event
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.envelope import VERSION_BYTE, compact_json
from flux_endpoint.protocol.fields import MAX_NANOSECONDS, readable
from flux_endpoint.protocol.messages import Result, read_json, unpack
from flux_endpoint.protocol.states import ActorName, ErrorCode, TaskState
from flux_endpoint.service.changes import Outcome, ReportedEnd
from flux_endpoint.service.consumer import BatchConsumer
from flux_endpoint.service.failures import PRESUMED_HEADER
from flux_endpoint.service.official import OfficialEndpoints
from flux_endpoint.service.store import dependencies, listing, task_groups, tasks
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.output import TaskOutput

log = logging.getLogger(__name__)

#: Maximum number of unacknowledged messages. They are in memory: each has one result of up to
#: 10 MiB (14 MiB as base64), or up to 64 small ones.
PREFETCH = 8

#: Header of a result that the service itself has published and may already have stored. It is
#: forwarded even if it is stored.
STORED_HEADER = "stored_by_service"

#: For a task group that was removed; its queues may still exist.
_ALL = task_groups.Listeners(plain=True, bundles=True)

#: Outcomes by the code at the beginning of a failure's text; all others have failed.
_OUTCOMES = {
    ErrorCode.CANCELLED.encode(): Outcome.CANCELLED,
    **dict.fromkeys(
        (
            each.encode()
            for each in (
                ErrorCode.WORKER_LOST,
                ErrorCode.JOURNAL_LOST,
                ErrorCode.ENDPOINT_LOST,
                ErrorCode.ENDPOINT_NOT_STARTED,
                ErrorCode.ENDPOINT_DELETED,
            )
        ),
        Outcome.LOST,
    ),
}
_LONGEST_CODE = 1 + max(map(len, _OUTCOMES))

_STATES = frozenset(TaskState)
_ACTORS = frozenset(ActorName)


@dataclass(frozen=True)
class _Received:
    delivery: Delivery
    outcome: tasks.TaskOutcome

    @property
    def official_body(self) -> bytes:
        """The message for official clients, without what the task has printed."""
        body = self.delivery.body
        if self.outcome.output is None:
            return body
        envelope = read_json(body)
        _, envelope["data"]["details"] = TaskOutput.split(envelope["data"]["details"])
        return VERSION_BYTE + compact_json(envelope)


@dataclass(frozen=True)
class _Stored:
    """The deliveries of a committed transaction, by what to do with them."""

    dropped: list[Delivery] = field(default_factory=list)
    misrouted: list[Delivery] = field(default_factory=list)
    forward: list[tuple[_Received, tasks.TaskRoute]] = field(default_factory=list)
    #: Kinds of queues that get the results, by task group.
    listeners: dict[str, task_groups.Listeners] = field(default_factory=dict)


class _Forwarded:
    """Acknowledges a result once all messages that forward it are confirmed."""

    def __init__(self, delivery: Delivery, messages: int) -> None:
        self._delivery = delivery
        self._left = messages
        self._lock = threading.Lock()
        if not messages:  # the group has no queue: clients get the result over REST
            delivery.ack()

    def confirmed(self, done: Future[None]) -> None:
        """Count a confirmed message; after a failed one the broker delivers the result again."""
        error = done.exception()
        if error is not None and not isinstance(error, UnroutableError):
            event(log, logging.WARNING, "result not forwarded", reason=error)
            return
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._delivery.ack()


class ResultConsumer(BatchConsumer[_Received, _Stored]):
    """Consumes the queue `results`.

    Args:
        database: the service's database.
        connection: connection to the broker.
        official: gives official endpoints further tasks when tasks have ended.
        on_ended: called with the first results of tasks, once they are stored.
        on_counted: called with what the ends mean for tasks that waited, if anything.
    """

    def __init__(
        self,
        database: Database,
        connection: AmqpConnection,
        official: OfficialEndpoints,
        on_ended: Callable[[Sequence[ReportedEnd]], None],
        on_counted: Callable[[dependencies.Counted], None],
    ) -> None:
        super().__init__(
            connection, queues.RESULTS_QUEUE, noun="result", prefetch=PREFETCH, bundles=True
        )
        self._database = database
        self._official = official
        self._on_ended = on_ended
        self._on_counted = on_counted

    def read(self, delivery: Delivery) -> _Received:
        """Return the outcome in a result message.

        Raises:
            InvalidMessageError: it can't be parsed.
        """
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
                    stored.misrouted.append(delivery)
                elif task_id in accepted and not _replaces(each, accepted[task_id].outcome):
                    stored.dropped.append(delivery)
                elif not route.ended or _replaces(each, route):
                    accepted[task_id] = each
                    stored.forward.append((each, route))
                elif (delivery.redelivered or delivery.headers.get(STORED_HEADER)) and (
                    tasks.stored_result(connection, task_id) == each.outcome.data
                ):
                    # It may have been stored but not forwarded before a restart.
                    stored.forward.append((each, route))
                else:
                    stored.dropped.append(delivery)
            tasks.complete(connection, [each.outcome for each in accepted.values()], known)
            ended = {
                task_id: each.outcome.failed
                for task_id, each in accepted.items()
                if not known[task_id].ended
            }
            counted = dependencies.tasks_ended(connection, ended)
            ran_at = {task_id: known[task_id].endpoint_id for task_id in accepted}
            have_room = self._official.results_stored(connection, ran_at)
        # After the commit: a client that begins to listen later asks REST for earlier results.
        with self._database.read() as connection:
            groups = {route.group_id for _, route in stored.forward}
            stored.listeners.update(task_groups.listeners(connection, groups))
        self._on_ended([_end(each.outcome, known[task_id]) for task_id, each in accepted.items()])
        self._official.have_room(have_room)
        if counted:
            self._on_counted(counted)
        return stored

    def settle(self, stored: _Stored) -> None:
        """Forward new results; each is acknowledged once the broker has confirmed it."""
        for delivery in stored.dropped:
            delivery.ack()
        for delivery in stored.misrouted:
            self.dead_letter(delivery, "its task belongs to another endpoint")
        by_group: dict[str, list[tuple[_Received, tasks.TaskRoute]]] = {}
        for each in stored.forward:
            by_group.setdefault(each[1].group_id, []).append(each)
        for group_id, results in by_group.items():
            self._forward(results, stored.listeners.get(group_id, _ALL))

    def _forward(
        self, results: list[tuple[_Received, tasks.TaskRoute]], to: task_groups.Listeners
    ) -> None:
        """Publish results of one task group; the exchange copies them to each client's queue."""
        parts: dict[int, tuple[Part, _Forwarded]] = {}
        for received, route in results:
            forwarded = _Forwarded(received.delivery, to.plain + to.bundles)
            if to.plain:
                self._forward_alone(received, route, forwarded)
            if to.bundles:
                part = Part(received.delivery.body, message_id=received.outcome.task_id)
                parts[id(part)] = part, forwarded
        key = queues.task_group_bundles_key(results[0][1].group_id)
        for message in gather(part for part, _ in parts.values()):
            is_bundle = len(message) > 1
            sent = self.connection.publish(
                queues.TASK_GROUPS_EXCHANGE,
                key,
                pack_bundle(message) if is_bundle else message[0].body,
                content_type=CONTENT_TYPE if is_bundle else None,
                # Such clients ask for stored results when they connect again, so the broker need
                # not write these to its disk.
                persistent=False,
                timestamp=int(results[0][0].outcome.completed_at),
            )
            for part in message:
                sent.add_done_callback(parts[id(part)][1].confirmed)

    def _forward_alone(
        self, received: _Received, route: tasks.TaskRoute, forwarded: _Forwarded
    ) -> None:
        sent = self._publish(queues.TASK_GROUPS_EXCHANGE, received, route)

        def directly(done: Future[None]) -> None:
            # An earlier release declared the group's queue without a binding.
            if isinstance(done.exception(), UnroutableError) and route.create_queue:
                with suppress(PublishError):  # closed: the broker delivers it to the next service
                    again = self._publish("", received, route)
                    again.add_done_callback(forwarded.confirmed)
            else:
                forwarded.confirmed(done)

        sent.add_done_callback(directly)

    def _publish(self, exchange: str, received: _Received, route: tasks.TaskRoute) -> Future[None]:
        return self.connection.publish(
            exchange,
            queues.task_group_key(route.group_id),
            received.official_body,
            timestamp=int(received.outcome.completed_at),
        )


def _end(outcome: tasks.TaskOutcome, route: tasks.TaskRoute) -> ReportedEnd:
    started, stopped = listing.ran_between(outcome.details)
    return ReportedEnd(
        owner_id=route.owner_id,
        outcome=_kind(outcome),
        submitted=route.submitted,
        started=started,
        stopped=stopped,
        ended=outcome.completed_at,
        size=len(outcome.data),
        replaces=route.ended,
        task_id=outcome.task_id,
        printed=0 if outcome.output is None else outcome.output.length,
    )


def _kind(outcome: tasks.TaskOutcome) -> Outcome:
    if not outcome.failed:
        return Outcome.SUCCESS
    return _OUTCOMES.get(outcome.data[:_LONGEST_CODE].partition(b":")[0], Outcome.FAILED)


def _replaces(received: _Received, earlier: tasks.TaskRoute | tasks.TaskOutcome) -> bool:
    return earlier.presumed and not received.outcome.presumed


def _parse(body: bytes) -> tasks.TaskOutcome:
    """Return the outcome in a result message, like `messages.unpack` but without a slow model.

    Raises:
        InvalidMessageError: it can't be parsed.
    """
    try:
        envelope: Any = read_json(body) if body[:1] == VERSION_BYTE else None
        data = envelope["data"]
        if envelope["message_type"] == Result.message_type and _is_plain(data):
            return _outcome(str(UUID(data["task_id"])), data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    message = unpack(body)
    if not isinstance(message, Result):
        raise InvalidMessageError(f"expected a result, got a {message.message_type} message")
    return _outcome(str(message.task_id), vars(message) | _dumped(message))


def _dumped(result: Result) -> dict[str, Any]:
    statuses = result.task_statuses
    return {
        "task_statuses": statuses and [each.model_dump(mode="json") for each in statuses],
        "details": readable(result.details),
    }


def _is_plain(data: dict[str, Any]) -> bool:
    """Return whether `data` is valid without any conversion; otherwise the model decides."""
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
    is_number = is_number or (isinstance(value, float) and math.isfinite(value))
    return is_number or isinstance(value, str | None)


def _outcome(task_id: str, data: dict[str, Any]) -> tasks.TaskOutcome:
    output, details = None, data.get("details")
    if details:
        output, details = TaskOutput.split(details)
    return tasks.TaskOutcome(
        task_id=task_id,
        failed=data.get("error_details") is not None,
        data=data["data"].encode(errors="surrogatepass"),
        details=_with_times(details, data.get("task_statuses")),
        completed_at=time.time(),
        output=output,
    )


def _with_times(
    details: dict[str, Any] | None, transitions: list[dict[str, Any]] | None
) -> dict[str, Any] | None:
    """Return a result's details with the times (ms since the epoch) of its state changes."""
    if not transitions:
        return details
    times = {each["state"]: each["timestamp"] // 1_000_000 for each in transitions}
    return {**(details or {}), listing.TRANSITIONS: times}
