"""The command that has a multi-user endpoint start a user endpoint.

Plain JSON without an envelope, as `globus-compute-endpoint` 4.19 reads it.
"""

import json
import time
from concurrent.futures import Future

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.protocol import queues
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.users import User

#: Seconds after which a command is dropped: a multi-user endpoint refuses those older than 180 s,
#: and fails the tasks with them.
COMMAND_SECONDS = 150.0


def send_start(connection: AmqpConnection, endpoint: Endpoint, amqp_url: str) -> Future[None]:
    """Tell a user endpoint's multi-user endpoint to start it; one that runs is left as it is."""
    assert endpoint.parent_id is not None
    owner = User(endpoint.owner_id, endpoint.owner)
    credentials = queues.endpoint_queues(endpoint.id, amqp_url)
    command = {
        "command": "cmd_start_endpoint",
        "globus_effective_identity": owner.id,
        "globus_username": owner.name,
        "globus_identity_set": [owner.identity],
        "args": [],
        "kwargs": {
            "name": endpoint.name,
            "amqp_creds": credentials.model_dump(exclude={"event_queue_info"}),
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
