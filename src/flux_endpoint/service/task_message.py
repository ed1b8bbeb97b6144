"""A task as the message that an endpoint takes from its queue."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from uuid import UUID

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.errors import PublishError, RefusedMessageError
from flux_endpoint.logs import event
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.service.countdown import pass_on
from flux_endpoint.service.failures import publish_failure
from flux_endpoint.service.store import tasks
from flux_endpoint.service.store.functions import Code

log = logging.getLogger(__name__)

# What a task without a function has in the header that an endpoint requires.
_NO_FUNCTION = str(UUID(int=0))


def publish_tasks(
    connection: AmqpConnection,
    submission: tasks.Submission,
    new: Sequence[tasks.NewTask],
    code: Mapping[str, Code],
) -> Iterator[Future[None]]:
    """Publish tasks of a submission one after the other; yield the confirm of each.

    A task that the broker refuses, as too large for it, ends in a failure instead.

    Args:
        connection: the way to the broker.
        submission: what they share.
        new: the tasks.
        code: the functions by their ids.

    Raises:
        PublishError: the connection was closed.
    """
    shared = _shared_headers(submission)
    becomes_job = bool(submission.resource_specification)
    queue_name = queues.tasks_queue(submission.endpoint_id)
    quoted: dict[str | None, str] = {None: '"'}  # without a function the buffer is empty
    quoted.update((each, json.dumps(its.text)[:-1]) for each, its in code.items())
    named = {
        each: {queues.FUNCTION_NAME_HEADER: its.name} for each, its in code.items() if its.name
    }
    for task in new:
        # Two JSON strings make one: the function's is encoded once for all of its tasks.
        body = (
            f'\x01{{"message_type":"task","data":{{"task_id":"{task.id}","task_buffer":'
            f"{quoted[task.function_id]}{json.dumps(task.payload)[1:]}}}}}"
        ).encode()
        sent = connection.publish(
            queues.TASKS_EXCHANGE,
            queue_name,
            body,
            headers={
                queues.TASK_ID_HEADER: task.id,
                queues.FUNCTION_ID_HEADER: task.function_id or _NO_FUNCTION,
                **(named.get(task.function_id or "", {}) if becomes_job else {}),
                **shared,
            },
        )
        settled: Future[None] = Future()
        settle = partial(_settle, settled, connection, submission.endpoint_id, task.id)
        sent.add_done_callback(settle)
        yield settled


def _settle(
    settled: Future[None],
    connection: AmqpConnection,
    endpoint_id: str,
    task_id: str,
    sent: Future[None],
) -> None:
    """End `settled` with the confirm of a task, or of its failure if the broker refuses the task.

    Runs on the connection's thread.
    """
    refusal = sent.exception()
    if not isinstance(refusal, RefusedMessageError):
        pass_on(settled, sent)
        return
    event(log, logging.ERROR, "the broker refuses a task", task_id=task_id, reason=refusal)
    text = f"the task could not be sent to its endpoint: {refusal}"
    try:
        failure = publish_failure(
            connection, endpoint_id, task_id, ErrorCode.COULD_NOT_EXECUTE, text, presumed=False
        )
    except PublishError as closed:  # we are ending: the next service comes here again
        settled.set_exception(closed)
    else:
        failure.add_done_callback(partial(pass_on, settled))


def _shared_headers(submission: tasks.Submission) -> dict[str, object]:
    headers: dict[str, object] = {}
    if submission.owner:
        headers[queues.SUBMITTER_HEADER] = submission.owner
    if submission.resource_specification:
        headers[queues.RESOURCES_HEADER] = json.dumps(submission.resource_specification)
    if submission.result_serializers:
        headers[queues.RESULT_SERIALIZERS_HEADER] = submission.result_serializers
    if submission.attach_jobid is not None:
        headers[queues.ATTACH_HEADER] = submission.attach_jobid
    return headers
