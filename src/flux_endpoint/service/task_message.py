"""A task as the message that an endpoint takes from its queue."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from uuid import UUID

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.protocol import queues
from flux_endpoint.service.store import tasks

# What a task without a function has in the header that an endpoint requires.
_NO_FUNCTION = str(UUID(int=0))


def publish_tasks(
    connection: AmqpConnection,
    submission: tasks.Submission,
    new: Sequence[tasks.NewTask],
    code: Mapping[str, str],
) -> Iterator[Future[None]]:
    """Publish tasks of a submission one after the other; yield the confirm of each.

    Args:
        connection: the way to the broker.
        submission: what they share.
        new: the tasks.
        code: the packed functions by their ids.

    Raises:
        PublishError: the connection was closed.
    """
    shared = _shared_headers(submission)
    queue_name = queues.tasks_queue(submission.endpoint_id)
    quoted: dict[str | None, str] = {None: '"'}  # without a function the buffer is empty
    quoted.update((each, json.dumps(text)[:-1]) for each, text in code.items())
    for task in new:
        # Two JSON strings make one: the function's is encoded once for all of its tasks.
        body = (
            f'\x01{{"message_type":"task","data":{{"task_id":"{task.id}","task_buffer":'
            f"{quoted[task.function_id]}{json.dumps(task.payload)[1:]}}}}}"
        ).encode()
        yield connection.publish(
            queues.TASKS_EXCHANGE,
            queue_name,
            body,
            headers={
                queues.TASK_ID_HEADER: task.id,
                queues.FUNCTION_ID_HEADER: task.function_id or _NO_FUNCTION,
                **shared,
            },
        )


def _shared_headers(submission: tasks.Submission) -> dict[str, object]:
    headers: dict[str, object] = {}
    if submission.resource_specification:
        headers[queues.RESOURCES_HEADER] = json.dumps(submission.resource_specification)
    if submission.result_serializers:
        headers[queues.RESULT_SERIALIZERS_HEADER] = submission.result_serializers
    if submission.attach_jobid is not None:
        headers[queues.ATTACH_HEADER] = submission.attach_jobid
    return headers
