"""Failures that the service publishes for an endpoint that can't do so itself."""

from collections.abc import Sequence
from concurrent.futures import Future, wait
from uuid import UUID

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.errors import AmqpError
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.messages import Result, ResultErrorDetails, pack
from flux_endpoint.protocol.states import ErrorCode

#: Header of a failure that a result of the endpoint still replaces.
PRESUMED_HEADER = "presumed_by_service"

#: Seconds that the broker has to confirm a page of failures.
_TIMEOUT = 30.0


def publish_failure(
    connection: AmqpConnection,
    endpoint_id: str,
    task_id: str,
    code: ErrorCode,
    text: str,
    *,
    presumed: bool,
) -> Future[None]:
    """Publish a task's failure as its endpoint would; return the broker's confirm.

    Args:
        connection: connection to the broker.
        endpoint_id: the task's endpoint.
        task_id: the task.
        code: the error code.
        text: the error message.
        presumed: whether a later result of the endpoint replaces the failure.

    Raises:
        PublishError: the connection is closed.
    """
    details = ResultErrorDetails(code=code, user_message=text)
    return connection.publish(
        queues.RESULTS_EXCHANGE,
        queues.results_key(endpoint_id),
        pack(Result(task_id=UUID(task_id), data=f"{code}: {text}", error_details=details)),
        headers={PRESUMED_HEADER: True} if presumed else None,
    )


def publish_failures(
    connection: AmqpConnection,
    endpoint_id: str,
    task_ids: Sequence[str],
    code: ErrorCode,
    text: str,
) -> None:
    """Publish a failure as the result of each task, and wait for the broker's confirms.

    The failures go through the queue of results, behind results that the endpoint sent before it
    was lost; those win. Once they are confirmed, a crash of the service can't lose them.

    Args:
        connection: connection to the broker.
        endpoint_id: the tasks' endpoint.
        task_ids: the tasks.
        code: the error code.
        text: the error message.

    Raises:
        AmqpError: the broker has not confirmed all of them; some may have been published.
    """
    sent = [
        publish_failure(connection, endpoint_id, task_id, code, text, presumed=True)
        for task_id in task_ids
    ]
    if wait(sent, _TIMEOUT).not_done:
        raise AmqpError("the broker has not confirmed the failures of tasks in time")
    for each in sent:
        each.result()
