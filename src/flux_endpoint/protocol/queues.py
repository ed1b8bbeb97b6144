"""Names of exchanges and queues, and the connection parameters in the answer to a registration.

Topology (all durable): direct exchanges `tasks` and `commands`, topic exchanges `results` and
`heartbeats`; per endpoint E the queues `E.tasks` and `E.commands`; the service's own queues
`results` and `heartbeats`, bound to `*.results` and `*.heartbeats`. Job events are routed like
results: topic exchange `events` and its queue `events`.

The service forwards what belongs to a task group G through the direct exchange `task-groups`:
results with the key `tg.G`, or several in one message with `tgb.G` for clients that accept bundles;
job events with `ev.G`. Every client C of this project that uses the group has its own queues there,
`tg.G.C` and `ev.G.C`, so that each gets everything; `tg.G` is the queue of official clients.
Services of one database pass output of followed tasks on through the fanout exchange `live-output`.
Unreadable and unroutable messages go to the queue `dead-letters`.
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
#: Forwards each result and job event to every queue of its task group.
TASK_GROUPS_EXCHANGE = "task-groups"
TASK_GROUP_PREFIX = "tg."
#: Prefix of the key of a group's results for clients that accept several in one message.
TASK_GROUP_BUNDLES_PREFIX = "tgb."
#: Job events travel separately from results, so that official clients never see them.
EVENTS_EXCHANGE = "events"
EVENTS_QUEUE = "events"
TASK_GROUP_EVENTS_PREFIX = "ev."
#: Between services of one database: what followed tasks print.
LIVE_OUTPUT_EXCHANGE = "live-output"

#: Headers of a task message. The first two are required; only they identify the task.
TASK_ID_HEADER = "task_uuid"
FUNCTION_ID_HEADER = "function_uuid"
RESOURCES_HEADER = "resource_specification"
RESULT_SERIALIZERS_HEADER = "result_serializers"
#: The JSON of `protocol.run_options.RunOptions`, without the defaults.
RUN_OPTIONS_HEADER = "run_options"
#: The function's name, shown as the job's; only for tasks with a resource specification.
FUNCTION_NAME_HEADER = "function_name"
#: The name of the user who submitted the task, for the endpoint's logs.
SUBMITTER_HEADER = "submitter"
#: The id, in decimal, of a running job that the task follows; the task's buffer is empty then.
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
    """Return the routing key of a task group's bundled results."""
    return f"{TASK_GROUP_BUNDLES_PREFIX}{task_group_id}"


def task_group_events_key(task_group_id: str) -> str:
    """Return the routing key of a task group's job events."""
    return f"{TASK_GROUP_EVENTS_PREFIX}{task_group_id}"


def task_group_queue(task_group_id: str, client_id: str | None = None) -> str:
    """Return the name of a client's queue for a group's results; `None`: official clients'."""
    return _of_client(task_group_key(task_group_id), client_id)


def task_group_events_queue(task_group_id: str, client_id: str | None = None) -> str:
    """Return the name of a client's queue for a group's job events.

    Clients without a `client_id`, such as those of earlier releases, share one.
    """
    return _of_client(task_group_events_key(task_group_id), client_id)


def _of_client(key: str, client_id: str | None) -> str:
    return key if client_id is None else f"{key}.{client_id}"


class ConsumeInfo(BaseModel):
    """The queue that an endpoint consumes from."""

    connection_url: str
    exchange: str
    queue: str


class PublishInfo(ConsumeInfo):
    """The exchange an endpoint publishes to; `queue_publish_kwargs` are for `basic_publish`."""

    queue_publish_kwargs: dict[str, Any]


class EndpointQueues(BaseModel):
    """The answer to a registration: everything an endpoint needs to use the broker."""

    endpoint_id: str
    command_queue_info: ConsumeInfo
    task_queue_info: ConsumeInfo
    result_queue_info: PublishInfo
    heartbeat_queue_info: PublishInfo
    #: For this project's endpoints; others ignore it.
    event_queue_info: PublishInfo | None = None
    #: Whether the service accepts several results in one message; others ignore it.
    takes_bundles: bool = False


def endpoint_queues(endpoint_id: str, connection_url: str) -> EndpointQueues:
    """Return the connection parameters of `endpoint_id` for the broker at `connection_url`."""

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
