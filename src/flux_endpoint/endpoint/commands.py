"""Requests from the command queue: end a task, signal its processes, or stop."""

from __future__ import annotations

import logging

from flux_endpoint.amqp import Delivery
from flux_endpoint.endpoint.intake import RefusedTask, refuse
from flux_endpoint.errors import InvalidMessageError
from flux_endpoint.logs import event
from flux_endpoint.protocol.messages import EndpointStop, TaskKill, unpack
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)


def read_command(delivery: Delivery) -> TaskKill | EndpointStop | None:
    """Return the request in a delivery; dead-letter an invalid one and return `None`."""
    try:
        message = unpack(delivery.body)
        if isinstance(message, TaskKill | EndpointStop):
            return message
        reason = f"a {message.message_type} message is no command"
    except InvalidMessageError as error:
        reason = str(error)
    event(
        log,
        logging.ERROR,
        "command dead-lettered",
        message_id=delivery.message_id,
        reason=reason,
    )
    delivery.reject()
    return None


def cancelled_before_it_came(task_id: str) -> RefusedTask:
    """Return the end of a task that is not here yet; recorded, it keeps the task from starting."""
    text = "TaskCancelled: the task was ended on request before it was started"
    return refuse(task_id, ErrorCode.CANCELLED, text, "The task was ended on request.")
