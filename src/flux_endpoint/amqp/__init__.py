"""One reconnecting AMQP connection, for service, endpoint and client."""

from flux_endpoint.amqp.connection import AmqpConnection, ConnectionState, StateChange
from flux_endpoint.amqp.consumer import Consumer, Delivery
from flux_endpoint.amqp.queue_admin import QueueAdmin, QueueCount
from flux_endpoint.amqp.topology import Binding, Exchange, Queue

__all__ = [
    "AmqpConnection",
    "Binding",
    "ConnectionState",
    "Consumer",
    "Delivery",
    "Exchange",
    "Queue",
    "QueueAdmin",
    "QueueCount",
    "StateChange",
]
