"""Ends of tasks in the format of the official endpoint's own engines."""

from __future__ import annotations

import json
from typing import Final

from flux_endpoint.engine import results
from flux_endpoint.errors import InvalidMessageError
from flux_endpoint.protocol.messages import Task, unpack
from flux_endpoint.protocol.states import ErrorCode

#: Part of every result without an error; inside a string, the quotes would be escaped.
_NO_ERROR: Final = b'"error_details":null'
#: The error codes that the official engines distinguish.
_KEPT: Final = frozenset({ErrorCode.REMOTE_EXECUTION, ErrorCode.MAX_RESULT_SIZE})
_USER_MESSAGE: Final = "An error occurred during the execution of this task"


def official_end(body: bytes) -> bytes:
    """Return a packed result with an error code of the official engines.

    They use one code for most failures; the text says which failure it was.
    """
    if _NO_ERROR in body:
        return body
    message = json.loads(body[1:])
    error = message["data"]["error_details"]
    if error is None or error["code"] in _KEPT:
        return body
    error.update(code=ErrorCode.REMOTE_EXECUTION.value, user_message=_USER_MESSAGE)
    return body[:1] + json.dumps(message, separators=(",", ":")).encode()


def read_task(task_id: str, packed: bytes) -> Task | bytes:
    """Return the task in a message, or the end of a message without a task.

    The official endpoint acknowledges what its engine accepts, and gets everything else again at
    each start: so an invalid message must be accepted, too.
    """
    try:
        message = unpack(packed)
    except InvalidMessageError as error:
        text = f"{type(error).__name__}: {error}"
        return results.failure(task_id, ErrorCode.REMOTE_EXECUTION, text)
    if isinstance(message, Task):
        return message
    return results.failure(
        task_id,
        ErrorCode.COULD_NOT_EXECUTE,
        f"CouldNotExecuteUserTaskError: Non Task-type message received: {message.message_type} "
        f"(of {len(packed)} bytes)",
    )
