"""Names of exchanges and queues, and the connection blocks that registration hands out.

Topology (all durable): direct exchanges `tasks` and `commands`, topic exchanges `results` and
`heartbeats`; per endpoint E the queues `E.tasks` and `E.commands`; the service's own queues
`results` and `heartbeats`, bound to `*.results` and `*.heartbeats`. Job events go the way of
results: topic exchange `events` and its queue `events`.

The service sends on what belongs to a task group G by the direct exchange `task-groups`: results
with the key `tg.G`, and several in one message with `tgb.G` to clients that take them so; job
events with `ev.G`. Every client C of this project that uses the group has
queues of its own there, `tg.G.C` and `ev.G.C`, so that each gets everything; `tg.G` is the queue of
official clients. What no one can read or route ends in the queue `dead-letters`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

TASKS_EXCHANGE = "tasks"
COMMANDS_EXCHANGE = "commands"
RESULTS_EXCHANGE = "results"
HEARTBEATS_EXCHANGE = "heartbeats"
DEAD_LETTERS = "dead-letters"  # a fanout exchange and the queue bound to it
RESULTS_QUEUE = "results"
HEARTBEATS_QUEUE = "heartbeats"
#: Sends each result and job event on to every queue of its task group.
TASK_GROUPS_EXCHANGE = "task-groups"
TASK_GROUP_PREFIX = "tg."
#: The key of a group's results for clients that take several in one message.
TASK_GROUP_BUNDLES_PREFIX = "tgb."
#: Job events travel beside the results, so that official clients and endpoints never see them.
EVENTS_EXCHANGE = "events"
EVENTS_QUEUE = "events"
TASK_GROUP_EVENTS_PREFIX = "ev."

#: Headers of a task message. The first two are required, identity comes from them alone.
TASK_ID_HEADER = "task_uuid"
FUNCTION_ID_HEADER = "function_uuid"
RESOURCES_HEADER = "resource_specification"
RESULT_SERIALIZERS_HEADER = "result_serializers"
#: What the function is called, for who looks at jobs; of tasks with a resource specification only.
FUNCTION_NAME_HEADER = "function_name"
#: The name of the user who submitted the task, for the endpoint's logs.
SUBMITTER_HEADER = "submitter"
#: The id, in decimal, of a running job that the task is to follow; the task's buffer is empty then.
ATTACH_HEADER = "attach_jobid"


def tasks_queue(endpoint_id: str) -> str:
    """Return the name of an endpoint's task queue."""
    return f"{endpoint_id}.tasks"


def commands_queue(endpoint_id: str) -> str:
    """Return the name of an endpoint's command queue."""
    return f"{endpoint_id}.commands"


def results_key(endpoint_id: str) -> str:
    """Return the routing key under which an endpoint publishes results."""
    return f"{endpoint_id}.results"


def heartbeats_key(endpoint_id: str) -> str:
    """Return the routing key under which an endpoint publishes status reports."""
    return f"{endpoint_id}.heartbeats"


def events_key(endpoint_id: str) -> str:
    """Return the routing key under which an endpoint publishes job events."""
    return f"{endpoint_id}.events"


def task_group_key(task_group_id: str) -> str:
    """Return the routing key of a task group's results."""
    return f"{TASK_GROUP_PREFIX}{task_group_id}"


def task_group_bundles_key(task_group_id: str) -> str:
    """Return the routing key of a task group's results, several in one message."""
    return f"{TASK_GROUP_BUNDLES_PREFIX}{task_group_id}"


def task_group_events_key(task_group_id: str) -> str:
    """Return the routing key of a task group's job events."""
    return f"{TASK_GROUP_EVENTS_PREFIX}{task_group_id}"


def task_group_queue(task_group_id: str, client_id: str | None = None) -> str:
    """Return the name of a client's queue of a group's results, or that of official clients."""
    return _of_client(task_group_key(task_group_id), client_id)


def task_group_events_queue(task_group_id: str, client_id: str | None = None) -> str:
    """Return the name of a client's queue of a group's job events.

    Clients that name no `client_id`, as those of earlier releases do, share one.
    """
    return _of_client(task_group_events_key(task_group_id), client_id)


def _of_client(key: str, client_id: str | None) -> str:
    return key if client_id is None else f"{key}.{client_id}"


class ConsumeInfo(BaseModel):
    """Where an endpoint consumes from."""

    connection_url: str
    exchange: str
    queue: str


class PublishInfo(ConsumeInfo):
    """Where an endpoint publishes; `queue_publish_kwargs` go into pika's `basic_publish`."""

    queue_publish_kwargs: dict[str, Any]


class EndpointQueues(BaseModel):
    """The answer to a registration: all that an endpoint needs to talk to the broker."""

    endpoint_id: str
    command_queue_info: ConsumeInfo
    task_queue_info: ConsumeInfo
    result_queue_info: PublishInfo
    heartbeat_queue_info: PublishInfo
    #: For this project's endpoints; others ignore it.
    event_queue_info: PublishInfo | None = None
    #: Whether the service takes several results in one message; others ignore it.
    takes_bundles: bool = False


def endpoint_queues(endpoint_id: str, connection_url: str) -> EndpointQueues:
    """Return the connection blocks of `endpoint_id` on the broker at `connection_url`."""

    def publish(exchange: str, queue: str, key: str) -> PublishInfo:
        return PublishInfo(
            connection_url=connection_url,
            exchange=exchange,
            queue=queue,
            queue_publish_kwargs={
                "exchange": exchange,
                "routing_key": key,
                "mandatory": True,
                "properties": {"delivery_mode": 2},
            },
        )

    def consume(exchange: str, queue: str) -> ConsumeInfo:
        return ConsumeInfo(connection_url=connection_url, exchange=exchange, queue=queue)

    return EndpointQueues(
        endpoint_id=endpoint_id,
        command_queue_info=consume(COMMANDS_EXCHANGE, commands_queue(endpoint_id)),
        task_queue_info=consume(TASKS_EXCHANGE, tasks_queue(endpoint_id)),
        result_queue_info=publish(RESULTS_EXCHANGE, RESULTS_QUEUE, results_key(endpoint_id)),
        heartbeat_queue_info=publish(
            HEARTBEATS_EXCHANGE, HEARTBEATS_QUEUE, heartbeats_key(endpoint_id)
        ),
        event_queue_info=publish(EVENTS_EXCHANGE, EVENTS_QUEUE, events_key(endpoint_id)),
        takes_bundles=True,
    )
