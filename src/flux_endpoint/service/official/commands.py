"""The command to a multi-user endpoint to start a user endpoint.

It is plain JSON without an envelope, as `globus-compute-endpoint` 4.19 expects it.
"""

import json
import time
from concurrent.futures import Future

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.protocol import queues
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.users import User

#: Seconds after which the broker drops a command. A multi-user endpoint refuses commands that are
#: older than 180 s, and reports the start as failed.
COMMAND_SECONDS = 150.0


def send_start(connection: AmqpConnection, endpoint: Endpoint, amqp_url: str) -> Future[None]:
    """Command a multi-user endpoint to start a user endpoint, unless that is running.

    Args:
        connection: connection to the broker.
        endpoint: the user endpoint.
        amqp_url: the broker's URL for the user endpoint.

    Returns:
        The broker's confirm.

    Raises:
        PublishError: the connection is closed.
    """
    assert endpoint.parent_id is not None
    owner = User(endpoint.owner_id, endpoint.owner)
    credentials = queues.endpoint_queues(endpoint.id, amqp_url)
    unknown = set() if endpoint.is_own_make else {"event_queue_info"}
    command = {
        "command": "cmd_start_endpoint",
        "globus_effective_identity": owner.id,
        "globus_username": owner.name,
        "globus_identity_set": [owner.identity],
        "args": [],
        "kwargs": {
            "name": endpoint.name,
            "amqp_creds": credentials.model_dump(exclude=unknown),
            "user_opts": endpoint.user_config or {},
            "user_runtime": endpoint.user_runtime or {},
        },
    }
    return connection.publish(
        queues.COMMANDS_EXCHANGE,
        queues.commands_queue(endpoint.parent_id),
        json.dumps(command).encode(),
        content_type="application/json",
        timestamp=int(time.time()),
        expiration=COMMAND_SECONDS,
    )
