"""Failures that the service itself writes, in the name of an endpoint that can't any more."""

from collections.abc import Sequence
from concurrent.futures import Future, wait
from uuid import UUID

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.errors import AmqpError
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.messages import Result, ResultErrorDetails, pack
from flux_endpoint.protocol.states import ErrorCode

#: Header of such a result: a true one, should it come, replaces it.
PRESUMED_HEADER = "presumed_by_service"

#: Seconds that the broker has to take a page of failures.
_PATIENCE = 30.0


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
        connection: the way to the broker.
        endpoint_id: the endpoint that the task was for.
        task_id: the task.
        code: why, for programs.
        text: why, for people.
        presumed: whether a true result may still come, and replaces it then.
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
    """Give tasks a failure as their result, and wait until the broker has it.

    It takes the way of every result, behind those that the endpoint sent before it vanished: these
    win. Nothing that happens to the service afterwards keeps it from the client.

    Args:
        connection: the way to the broker.
        endpoint_id: the endpoint that had the tasks.
        task_ids: the tasks.
        code: why, for programs.
        text: why, for people.

    Raises:
        AmqpError: the broker has not confirmed all of them; some may have been published.
    """
    sent = [
        publish_failure(connection, endpoint_id, task_id, code, text, presumed=True)
        for task_id in task_ids
    ]
    if wait(sent, _PATIENCE).not_done:
        raise AmqpError("the broker does not take the failures of tasks now")
    for each in sent:
        each.result()
