"""Commands to a Flux Endpoint agent, sent over the endpoint's command queue."""

from flux_endpoint.errors import AmqpError, UnroutableError
from flux_endpoint.protocol import queues
from flux_endpoint.service import topology
from flux_endpoint.service.context import ServiceContext
from flux_endpoint.service.errors import broker_unavailable


def command_endpoint(
    service: ServiceContext, endpoint_id: str, body: bytes, *, expiration: float | None = None
) -> None:
    """Put a command into an endpoint's queue, whether the endpoint is online or not.

    Args:
        service: the service that sends it.
        endpoint_id: the endpoint.
        body: the message.
        expiration: seconds after which the broker drops it; `None`: it keeps it.

    Raises:
        ServiceError: 503, the broker did not accept it.
    """
    timeout = service.settings.publish_timeout
    exchange, key = queues.COMMANDS_EXCHANGE, queues.commands_queue(endpoint_id)
    try:
        try:
            service.publisher.send(exchange, key, body, timeout, expiration=expiration)
        except UnroutableError:  # the queue was deleted
            service.publisher.declare(topology.of_endpoint(endpoint_id), timeout)
            service.publisher.send(exchange, key, body, timeout, expiration=expiration)
    except AmqpError as error:
        raise broker_unavailable() from error
