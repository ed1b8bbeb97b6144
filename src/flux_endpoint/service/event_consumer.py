"""Consumes job events: stores them, forwards them to clients, then acknowledges them.

No client has to listen: a later one gets the events from the store.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.errors import InvalidMessageError
from flux_endpoint.logs import event
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.envelope import VERSION_BYTE
from flux_endpoint.protocol.job_events import OUTPUT_EVENT
from flux_endpoint.protocol.jobid import parse_jobid
from flux_endpoint.protocol.messages import TaskEvent, TaskEvents, unpack
from flux_endpoint.service.changes import ChangeListener
from flux_endpoint.service.consumer import BatchConsumer
from flux_endpoint.service.countdown import Countdown
from flux_endpoint.service.store import tasks
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.events import StoredEvent, add_events, known_events

log = logging.getLogger(__name__)

#: Maximum number of unacknowledged deliveries; each has many events.
PREFETCH = 64

#: Maximum number of events of a task, and maximum size of an event's context in characters of JSON.
#: A Flux job has about twenty events.
MAX_TASK_EVENTS = 1000
MAX_CONTEXT = 16 * 1024

# Maximum number of events in one message to a task group.
_MESSAGE_EVENTS = 500
_MAX_NAME = 256


@dataclass(frozen=True)
class _Received:
    delivery: Delivery
    events: list[StoredEvent]


@dataclass(frozen=True)
class _Stored:
    """The deliveries of a committed transaction, by what to do with them."""

    accepted: list[Delivery] = field(default_factory=list)
    misrouted: list[Delivery] = field(default_factory=list)
    forward: dict[str, list[StoredEvent]] = field(default_factory=dict)  # by task group


class EventConsumer(BatchConsumer[_Received, _Stored]):
    """Consumes the queue `events`.

    Args:
        database: the service's database.
        connection: connection to the broker.
        changes: gets the owners of tasks that have new events, and the output of running tasks.
    """

    def __init__(
        self,
        database: Database,
        connection: AmqpConnection,
        changes: ChangeListener,
    ) -> None:
        super().__init__(connection, queues.EVENTS_QUEUE, noun="job events", prefetch=PREFETCH)
        self._database = database
        self._changes = changes

    def read(self, delivery: Delivery) -> _Received:
        """Return the events in a message.

        Raises:
            InvalidMessageError: it can't be parsed, or has an invalid event.
        """
        message = unpack(delivery.body)
        if not isinstance(message, TaskEvents):
            raise InvalidMessageError(f"expected task_events, got a {message.message_type} message")
        return _Received(delivery, [_checked(each) for each in message.events])

    def store(self, received: Sequence[_Received]) -> _Stored:
        """Store the new events."""
        stored = _Stored()
        new: list[StoredEvent] = []
        output: list[StoredEvent] = []
        unknown: set[str] = set()
        with self._database.write() as connection:
            named = {each.task_id for message in received for each in message.events}
            routes = tasks.routes(connection, named)
            seen = known_events(connection, routes)
            counts = Counter(task_id for task_id, _, _ in seen)
            full: set[str] = set()
            for message in received:
                delivery = message.delivery
                if not _owns_all(delivery.routing_key, message, routes):
                    stored.misrouted.append(delivery)
                    continue
                stored.accepted.append(delivery)
                for each in message.events:
                    route = routes.get(each.task_id)
                    if route is None:
                        unknown.add(each.task_id)
                        continue
                    if each.name == OUTPUT_EVENT:
                        output.append(each)
                        continue
                    if each.key not in seen:
                        if counts[each.task_id] >= MAX_TASK_EVENTS:
                            full.add(each.task_id)
                            continue
                        counts[each.task_id] += 1
                        seen.add(each.key)
                        new.append(each)
                    elif not delivery.redelivered:
                        continue
                    # A redelivered event may have been stored but not forwarded before a restart.
                    stored.forward.setdefault(route.group_id, []).append(each)
            add_events(connection, new)
        for each in output:
            self._changes.output_arrived(each.task_id, each.context)
        self._changes.events_stored({routes[each.task_id].owner_id for each in new})
        for task_id in unknown:
            event(log, logging.WARNING, "job events of an unknown task", task_id=task_id)
        for task_id in full:
            reason = f"the task already has {MAX_TASK_EVENTS}"
            event(log, logging.WARNING, "job events dropped", task_id=task_id, reason=reason)
        return stored

    def settle(self, stored: _Stored) -> None:
        """Forward events to their task groups; acknowledge once the broker has confirmed all."""
        for delivery in stored.misrouted:
            self.dead_letter(delivery, "it names a task of another endpoint")

        def acknowledge(error: BaseException | None) -> None:
            if error is not None:  # clients find them in the store
                event(log, logging.WARNING, "job events not forwarded", reason=error)
            for delivery in stored.accepted:
                delivery.ack()

        messages = [
            (queues.task_group_events_key(group_id), body)
            for group_id, events in stored.forward.items()
            for body in _bodies(events)
        ]
        if not messages:
            acknowledge(None)
            return
        countdown = Countdown(len(messages), acknowledge)
        for key, body in messages:
            # Not mandatory: the group has a queue only while a client follows it.
            sent = self.connection.publish(queues.TASK_GROUPS_EXCHANGE, key, body, mandatory=False)
            sent.add_done_callback(countdown.one_done)


def _owns_all(routing_key: str, message: _Received, routes: dict[str, tasks.TaskRoute]) -> bool:
    owners = {routes[each.task_id].endpoint_id for each in message.events if each.task_id in routes}
    return all(routing_key == queues.events_key(owner) for owner in owners)


def _checked(received: TaskEvent) -> StoredEvent:
    """Return an event whose values every database can store.

    Raises:
        InvalidMessageError: its name or job id is invalid.
    """
    name = received.name
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise InvalidMessageError(
            f"an event's name must have 1 to {_MAX_NAME} printable characters, not {name[:99]!r}"
        )
    try:
        jobid = None if received.jobid is None else parse_jobid(received.jobid)
    except ValueError as error:
        raise InvalidMessageError(f"event '{name}': {error}") from error
    context = received.context
    if name == OUTPUT_EVENT:  # it is not stored
        return StoredEvent(str(received.task_id), None, name, received.timestamp, context)
    size = len(json.dumps(context))
    if size > MAX_CONTEXT:
        context = {"omitted": f"{size} characters, more than {MAX_CONTEXT}"}
    return StoredEvent(str(received.task_id), jobid, name, received.timestamp, context)


def _bodies(events: list[StoredEvent]) -> Iterator[bytes]:
    left = iter(events)
    while part := list(islice(left, _MESSAGE_EVENTS)):
        # ASCII: a context may hold characters that UTF-8 can't encode.
        envelope = {
            "message_type": TaskEvents.message_type,
            "data": {"events": [vars(each) for each in part]},
        }
        yield VERSION_BYTE + json.dumps(envelope, separators=(",", ":")).encode()
