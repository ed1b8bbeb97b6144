"""Names of exchanges and queues, and the connection blocks that registration hands out.

Topology (all durable): direct exchanges `tasks` and `commands`, topic exchanges `results` and
`heartbeats`; per endpoint E the queues `E.tasks` and `E.commands`; the service's own queues
`results` and `heartbeats`, bound to `*.results` and `*.heartbeats`; per task group G a queue `tg.G`
on the default exchange. Job events go the way of results: topic exchange `events`, its queue
`events`, and per task group the queue `ev.G` while somebody listens. What no one can read or route
ends in the queue `dead-letters`.
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
TASK_GROUP_PREFIX = "tg."
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


def task_group_events_queue(task_group_id: str) -> str:
    """Return the name of the queue of a task group's job events."""
    return f"{TASK_GROUP_EVENTS_PREFIX}{task_group_id}"


def task_group_queue(task_group_id: str) -> str:
    """Return the name of a task group's result queue."""
    return f"{TASK_GROUP_PREFIX}{task_group_id}"


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
    )
