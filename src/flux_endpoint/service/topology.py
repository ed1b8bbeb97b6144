"""The exchanges and queues that the service declares; clients and endpoints declare none."""

from flux_endpoint.amqp import Binding, Exchange, Queue
from flux_endpoint.protocol import queues

#: An unused task group queue is kept for so long (milliseconds): 14 days.
GROUP_QUEUE_EXPIRES = 14 * 24 * 3600 * 1000

#: The same of the queue of a group's job events: a day; REST has them all.
EVENTS_QUEUE_EXPIRES = 24 * 3600 * 1000

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


def of_group(group_id: str) -> Queue:
    """Return the result queue of a task group."""
    return Queue(
        queues.task_group_queue(group_id), {**_SET_ASIDE, "x-expires": GROUP_QUEUE_EXPIRES}
    )


def of_group_events(group_id: str) -> Queue:
    """Return the queue of a task group's job events."""
    return Queue(
        queues.task_group_events_queue(group_id),
        {
            **_SET_ASIDE,
            "x-expires": EVENTS_QUEUE_EXPIRES,
            "x-max-length-bytes": EVENTS_QUEUE_MAX_BYTES,
            # Dropping the oldest instead would send them to the dead letters.
            "x-overflow": "reject-publish",
        },
    )
