"""The exchanges and queues that the service declares; clients and endpoints declare none."""

from typing import Any

from flux_endpoint.amqp import Binding, Exchange, Queue
from flux_endpoint.protocol import queues

#: The queue of a group's official clients is kept unused for so long (milliseconds): 14 days.
GROUP_QUEUE_EXPIRES = 14 * 24 * 3600 * 1000

#: A client's own queue: 10 minutes. For so long it fills up when its client is gone for good; one
#: that comes back later opens it again, and asks REST for what it missed.
CLIENT_QUEUE_EXPIRES = 10 * 60 * 1000

#: The queue of job events of clients that name no queue of their own: a day.
SHARED_EVENTS_EXPIRES = 24 * 3600 * 1000

#: Bytes of job events that wait for somebody who listens no more; what comes then is not kept.
EVENTS_QUEUE_MAX_BYTES = 64 * 2**20

#: What is set aside may take this much of the broker's disk; the oldest goes first.
DEAD_LETTERS_MAX_BYTES = 2**30

_SET_ASIDE = {"x-dead-letter-exchange": queues.DEAD_LETTERS}
_UNROUTABLE = {"alternate-exchange": queues.DEAD_LETTERS}

Declaration = Exchange | Queue | Binding


def shared() -> list[Declaration]:
    """Return what exists once: the exchanges and the service's own queues."""
    return [
        Exchange(queues.DEAD_LETTERS, "fanout"),
        Queue(queues.DEAD_LETTERS, {"x-max-length-bytes": DEAD_LETTERS_MAX_BYTES}),
        Binding(queues.DEAD_LETTERS, queues.DEAD_LETTERS, ""),
        Exchange(queues.TASKS_EXCHANGE, "direct"),
        Exchange(queues.COMMANDS_EXCHANGE, "direct"),
        Exchange(queues.RESULTS_EXCHANGE, "topic", _UNROUTABLE),
        Exchange(queues.HEARTBEATS_EXCHANGE, "topic", _UNROUTABLE),
        Exchange(queues.EVENTS_EXCHANGE, "topic", _UNROUTABLE),
        Exchange(queues.TASK_GROUPS_EXCHANGE, "direct"),
        Queue(queues.RESULTS_QUEUE, _SET_ASIDE),
        Queue(queues.HEARTBEATS_QUEUE, _SET_ASIDE),
        Queue(queues.EVENTS_QUEUE, _SET_ASIDE),
        Binding(queues.RESULTS_EXCHANGE, queues.RESULTS_QUEUE, queues.results_key("*")),
        Binding(queues.HEARTBEATS_EXCHANGE, queues.HEARTBEATS_QUEUE, queues.heartbeats_key("*")),
        Binding(queues.EVENTS_EXCHANGE, queues.EVENTS_QUEUE, queues.events_key("*")),
    ]


def of_endpoint(endpoint_id: str) -> list[Declaration]:
    """Return the queues of one endpoint."""
    tasks, commands = queues.tasks_queue(endpoint_id), queues.commands_queue(endpoint_id)
    return [
        Queue(tasks, _SET_ASIDE),
        Binding(queues.TASKS_EXCHANGE, tasks, tasks),
        Queue(commands, _SET_ASIDE),
        Binding(queues.COMMANDS_EXCHANGE, commands, commands),
    ]


def of_group(group_id: str) -> list[Declaration]:
    """Return the result queue of a task group's official clients."""
    return _group_queue(
        queues.task_group_queue(group_id),
        queues.task_group_key(group_id),
        {"x-expires": GROUP_QUEUE_EXPIRES},
    )


def results_of_client(group_id: str, client_id: str, *, bundles: bool) -> list[Declaration]:
    """Return a client's own queue of a task group's results.

    Args:
        group_id: the task group.
        client_id: the client.
        bundles: whether it takes several results in one message.
    """
    key = queues.task_group_bundles_key if bundles else queues.task_group_key
    return _group_queue(
        queues.task_group_queue(group_id, client_id),
        key(group_id),
        {"x-expires": CLIENT_QUEUE_EXPIRES},
    )


def events_of_client(group_id: str, client_id: str | None) -> list[Declaration]:
    """Return a client's queue of a task group's job events."""
    return _group_queue(
        queues.task_group_events_queue(group_id, client_id),
        queues.task_group_events_key(group_id),
        {
            "x-expires": SHARED_EVENTS_EXPIRES if client_id is None else CLIENT_QUEUE_EXPIRES,
            "x-max-length-bytes": EVENTS_QUEUE_MAX_BYTES,
            # Dropping the oldest instead would send them to the dead letters.
            "x-overflow": "reject-publish",
        },
    )


def _group_queue(name: str, key: str, arguments: dict[str, Any]) -> list[Declaration]:
    return [
        Queue(name, {**_SET_ASIDE, **arguments}),
        Binding(queues.TASK_GROUPS_EXCHANGE, name, key),
    ]
