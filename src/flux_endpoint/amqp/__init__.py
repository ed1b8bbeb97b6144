"""One reconnecting AMQP connection, used by the service, the endpoint and the client alike."""

from flux_endpoint.amqp.connection import AmqpConnection, ConnectionState, StateChange
from flux_endpoint.amqp.consumer import Consumer, Delivery
from flux_endpoint.amqp.custodian import Custodian, QueueCount
from flux_endpoint.amqp.topology import Binding, Exchange, Queue

__all__ = [
    "AmqpConnection",
    "Binding",
    "ConnectionState",
    "Consumer",
    "Custodian",
    "Delivery",
    "Exchange",
    "Queue",
    "QueueCount",
    "StateChange",
]
