"""Publishes tasks as messages to an endpoint's queue."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any
from uuid import UUID

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.amqp.bundle import CONTENT_TYPE, Part, gather, pack_bundle
from flux_endpoint.errors import PublishError, RefusedMessageError
from flux_endpoint.logs import event
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.envelope import quoted
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.service.countdown import Countdown, end, pass_on
from flux_endpoint.service.failures import publish_failure
from flux_endpoint.service.store import tasks
from flux_endpoint.service.store.functions import Code

log = logging.getLogger(__name__)

# Function id of a task without a function: endpoints require the header.
_NO_FUNCTION = str(UUID(int=0))


def publish_tasks(
    connection: AmqpConnection,
    submission: tasks.Submission,
    new: Sequence[tasks.NewTask],
    code: Mapping[str, Code],
    together: int = 1,
) -> Iterator[Future[None]]:
    """Publish tasks of a submission one after the other; yield the confirm of each message.

    A task that the broker refuses because of its size fails.

    Args:
        connection: connection to the broker.
        submission: the submission.
        new: its tasks.
        code: the code of functions, by function id.
        together: maximum number of tasks that the endpoint accepts in one message.

    Raises:
        PublishError: the connection was closed.
    """
    sender = _Sender(connection, submission)
    for message in gather(_parts(submission, new, code), together):
        yield sender.send(message)


def _parts(
    submission: tasks.Submission, new: Sequence[tasks.NewTask], code: Mapping[str, Code]
) -> Iterator[Part]:
    becomes_job = bool(submission.resource_specification)
    start = '\x01{"message_type":"task","data":{"task_buffer":'
    # The JSON text of the function and that of the arguments are joined to one string, so that the
    # function is encoded and sent once for all of its tasks.
    heads: dict[str | None, bytes] = {None: f'{start}"'.encode()}  # without a function: no code
    heads.update(
        (each, f"{start}{json.dumps(its.text)[:-1]}".encode()) for each, its in code.items()
    )
    for task in new:
        headers: dict[str, object] = {
            queues.TASK_ID_HEADER: task.id,
            queues.FUNCTION_ID_HEADER: task.function_id or _NO_FUNCTION,
        }
        if becomes_job and (name := code[task.function_id].name if task.function_id else ""):
            headers[queues.FUNCTION_NAME_HEADER] = name
        end = f',"task_id":"{task.id}"}}}}'.encode()
        rest = b"".join((memoryview(quoted(task.payload))[1:], end))
        yield Part(rest, heads[task.function_id], headers)


class _Sender:
    """Publishes tasks of a submission, and handles the confirm of each message."""

    def __init__(self, connection: AmqpConnection, submission: tasks.Submission) -> None:
        self._connection = connection
        self._endpoint_id = submission.endpoint_id
        self._queue_name = queues.tasks_queue(submission.endpoint_id)
        self._shared = _shared_headers(submission)

    def send(self, parts: Sequence[Part]) -> Future[None]:
        """Publish tasks in one message; the future is done once each is sent or has failed."""
        if len(parts) > 1:
            body = pack_bundle(parts, self._shared)
            sent = self._publish(body, content_type=CONTENT_TYPE)
        else:
            sent = self._publish(parts[0].body, headers={**parts[0].headers, **self._shared})
        settled: Future[None] = Future()
        sent.add_done_callback(partial(self._sent, parts, settled))
        return settled

    def _publish(self, body: bytes, **options: Any) -> Future[None]:
        return self._connection.publish(queues.TASKS_EXCHANGE, self._queue_name, body, **options)

    def _sent(self, parts: Sequence[Part], settled: Future[None], sent: Future[None]) -> None:
        """Handle the end of a message, on the connection's thread."""
        refusal = sent.exception()
        if not isinstance(refusal, RefusedMessageError):
            pass_on(settled, sent)
            return
        try:
            if len(parts) > 1:  # one by one they may be small enough
                countdown = Countdown(len(parts), partial(end, settled))
                for part in parts:
                    self.send([part]).add_done_callback(countdown.one_done)
                return
            task_id = str(parts[0].headers[queues.TASK_ID_HEADER])
            event(log, logging.ERROR, "the broker refused a task", task_id=task_id, reason=refusal)
            text = f"the task could not be sent to its endpoint: {refusal}"
            failure = publish_failure(
                self._connection,
                self._endpoint_id,
                task_id,
                ErrorCode.COULD_NOT_EXECUTE,
                text,
                presumed=False,
            )
        except PublishError as closed:  # the service is stopping: the next one publishes them
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
    if submission.run_options:
        headers[queues.RUN_OPTIONS_HEADER] = json.dumps(submission.run_options)
    if submission.attach_jobid is not None:
        headers[queues.ATTACH_HEADER] = submission.attach_jobid
    return headers
