"""The exchanges and queues that the service declares; clients and endpoints declare none."""

from typing import Any

from flux_endpoint.amqp import Binding, Exchange, Queue
from flux_endpoint.protocol import queues

#: The broker deletes the queue of a group's official clients if it is unused for this time (ms).
GROUP_QUEUE_EXPIRES = 14 * 24 * 3600 * 1000

#: The same for a client's own queue (ms). It keeps collecting messages for this time after its
#: client is gone. A client that returns later opens it again, and reads the rest over REST.
CLIENT_QUEUE_EXPIRES = 10 * 60 * 1000

#: The same for the job-event queue that a group's clients without an id share (ms).
SHARED_EVENTS_EXPIRES = 24 * 3600 * 1000

#: Maximum bytes in a queue of job events; the broker rejects further events.
EVENTS_QUEUE_MAX_BYTES = 64 * 2**20

#: The broker deletes a service's queue for the output of followed tasks if the service is gone for
#: this time (ms), and drops the oldest messages beyond so many bytes.
LIVE_OUTPUT_EXPIRES = 60 * 1000
LIVE_OUTPUT_MAX_BYTES = 64 * 2**20

#: Maximum bytes of dead-lettered messages; the oldest are dropped first.
DEAD_LETTERS_MAX_BYTES = 2**30

#: The service's own queues.
SERVICE_QUEUES = (
    queues.RESULTS_QUEUE,
    queues.EVENTS_QUEUE,
    queues.HEARTBEATS_QUEUE,
    queues.DEAD_LETTERS,
)

_DEAD_LETTERING = {"x-dead-letter-exchange": queues.DEAD_LETTERS}
_UNROUTABLE = {"alternate-exchange": queues.DEAD_LETTERS}

Declaration = Exchange | Queue | Binding


def shared() -> list[Declaration]:
    """Return the exchanges and the service's own queues."""
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
        Exchange(queues.LIVE_OUTPUT_EXCHANGE, "fanout"),
        Queue(queues.RESULTS_QUEUE, _DEAD_LETTERING),
        Queue(queues.HEARTBEATS_QUEUE, _DEAD_LETTERING),
        Queue(queues.EVENTS_QUEUE, _DEAD_LETTERING),
        Binding(queues.RESULTS_EXCHANGE, queues.RESULTS_QUEUE, queues.results_key("*")),
        Binding(queues.HEARTBEATS_EXCHANGE, queues.HEARTBEATS_QUEUE, queues.heartbeats_key("*")),
        Binding(queues.EVENTS_EXCHANGE, queues.EVENTS_QUEUE, queues.events_key("*")),
    ]


def of_endpoint(endpoint_id: str) -> list[Declaration]:
    """Return the queues of one endpoint."""
    tasks, commands = queues.tasks_queue(endpoint_id), queues.commands_queue(endpoint_id)
    return [
        Queue(tasks, _DEAD_LETTERING),
        Binding(queues.TASKS_EXCHANGE, tasks, tasks),
        Queue(commands, _DEAD_LETTERING),
        Binding(queues.COMMANDS_EXCHANGE, commands, commands),
    ]


def live_output_queue(service_id: str) -> str:
    """Return the name of a service's queue for what others pass on of followed tasks."""
    return f"{queues.LIVE_OUTPUT_EXCHANGE}.{service_id}"


def output_of_service(service_id: str) -> list[Declaration]:
    """Return a service's queue for what others pass on of followed tasks."""
    name = live_output_queue(service_id)
    limits = {"x-expires": LIVE_OUTPUT_EXPIRES, "x-max-length-bytes": LIVE_OUTPUT_MAX_BYTES}
    return [Queue(name, limits), Binding(queues.LIVE_OUTPUT_EXCHANGE, name, "")]


def of_group(group_id: str) -> list[Declaration]:
    """Return the result queue of a task group's official clients."""
    return _group_queue(
        queues.task_group_queue(group_id),
        queues.task_group_key(group_id),
        {"x-expires": GROUP_QUEUE_EXPIRES},
    )


def results_of_client(group_id: str, client_id: str, *, bundles: bool) -> list[Declaration]:
    """Return a client's own queue for a task group's results.

    Args:
        group_id: the task group.
        client_id: the client.
        bundles: whether the client accepts several results in one message.
    """
    key = queues.task_group_bundles_key if bundles else queues.task_group_key
    return _group_queue(
        queues.task_group_queue(group_id, client_id),
        key(group_id),
        {"x-expires": CLIENT_QUEUE_EXPIRES},
    )


def events_of_client(group_id: str, client_id: str | None) -> list[Declaration]:
    """Return a client's queue for a task group's job events.

    Args:
        group_id: the task group.
        client_id: the client; `None`: the queue that clients without an id share.
    """
    return _group_queue(
        queues.task_group_events_queue(group_id, client_id),
        queues.task_group_events_key(group_id),
        {
            "x-expires": SHARED_EVENTS_EXPIRES if client_id is None else CLIENT_QUEUE_EXPIRES,
            "x-max-length-bytes": EVENTS_QUEUE_MAX_BYTES,
            # RabbitMQ would dead-letter the oldest events if it dropped them instead.
            "x-overflow": "reject-publish",
        },
    )


def _group_queue(name: str, key: str, arguments: dict[str, Any]) -> list[Declaration]:
    return [
        Queue(name, {**_DEAD_LETTERING, **arguments}),
        Binding(queues.TASK_GROUPS_EXCHANGE, name, key),
    ]
