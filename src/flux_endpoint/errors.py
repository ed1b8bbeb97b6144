"""All errors that the project raises, in one small hierarchy.

Each text says what was wrong, where, and what to do about it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any


class FluxEndpointError(Exception):
    """Base of all errors that this project raises on purpose."""


#: The base class under its name in the official package.
ComputeError = FluxEndpointError


class ConfigurationError(FluxEndpointError):
    """A setting, a configuration file or a credentials file is missing or wrong."""


class NotFoundError(ConfigurationError):
    """A named object does not exist, such as an endpoint of this machine."""


class BackgroundError(FluxEndpointError):
    """A process started in the background ended before it was ready.

    Attributes:
        exit_status: of the process; negative if a signal ended it.
    """

    def __init__(self, message: str, *, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class StillTryingError(FluxEndpointError):
    """A background process is not ready, because something that it needs is unreachable."""


class SerdeError(FluxEndpointError):
    """Something could not be serialized, deserialized, or selected for that."""

    @property
    def reason(self) -> str:
        """The error's text."""
        return str(self)


class SerializationError(SerdeError):
    """The selected strategy could not turn an object into text."""


class ReadOnlyStrategyError(SerializationError, NotImplementedError):
    """The strategy only reads data of older releases."""


class PayloadTooLargeError(SerializationError):
    """A serialized function or its arguments exceed the limit for a task."""


class DeserializationError(SerdeError):
    """Text could not be turned back into an object."""


class DataStoreError(SerializationError, DeserializationError):
    """A store of large data can't take an object, or does not have it any more."""


class PackedBufferError(DeserializationError, ValueError):
    """Text is not a packed list of buffers."""


class InvalidMessageError(FluxEndpointError, ValueError):
    """A message body does not follow the wire protocol."""


class UnrecognizedProtocolVersionError(InvalidMessageError):
    """This project does not read messages with this version byte."""


class AmqpError(FluxEndpointError):
    """An error in the communication with the message broker."""


class UnroutableError(AmqpError):
    """The broker accepted a mandatory message, but no queue received it."""


class PublishError(AmqpError):
    """The broker refused a message (a negative confirm), or the connection is closed for good."""


class RefusedMessageError(PublishError):
    """The broker refuses this message every time: it is too large."""


class RecordError(FluxEndpointError):
    """A file that records accepted tasks, such as the journal, can't be read or written.

    Attributes:
        damaged: whether its content is damaged; otherwise writing may succeed later, e.g. when the
            disk is no longer full.
    """

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


class EndpointInUseError(FluxEndpointError):
    """Another agent runs this endpoint, here or on another host."""


class EndpointGoneError(FluxEndpointError):
    """The service does not know the endpoint any more: it was deleted, or its token revoked."""


class ServiceError(FluxEndpointError):
    """The REST service refused a request.

    Attributes:
        http_status: HTTP status code of the answer.
        code: machine-readable error code, e.g. ``ENDPOINT_NOT_FOUND``.
        field: dotted name of the invalid field in the request, if there is one.
        retry_after: seconds after which the same request may succeed, if it is refused for now.
    """

    def __init__(
        self,
        message: str,
        *,
        http_status: int,
        code: str,
        field: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.code = code
        self.field = field
        self.retry_after = retry_after

    def saying(self, text: str) -> ServiceError:
        """Return the same refusal with a more specific text.

        Args:
            text: the new text.
        """
        return ServiceError(
            text,
            http_status=self.http_status,
            code=self.code,
            field=self.field,
            retry_after=self.retry_after,
        )


class ServiceUnreachableError(FluxEndpointError):
    """The REST service could not be reached, or kept answering with a server error."""


class EngineError(FluxEndpointError):
    """The engine could not be started, or can't take tasks any more."""


class InstanceLostError(EngineError):
    """The Flux instance that an endpoint ran in is gone, or is ending."""


class TaskError(FluxEndpointError):
    """A task ended without a value. Base class of the errors that futures raise."""


_SERIALIZATION = re.compile("dill|pickle|serializ", re.IGNORECASE)
_WORKER_LOST = re.compile(r"\bWorkerLost\b")
_SERIALIZATION_HINT = """
This appears to be an error with serialization. If it is, another strategy may help, e.g. for
functions as source text:
  from flux_endpoint.serialize import AllCodeStrategies, ComputeSerializer
  executor.serializer = ComputeSerializer(strategy_code=AllCodeStrategies())
Use the endpoint's minor version of Python, and install there what the function imports.
"""
_WORKER_LOST_HINT = """
A worker that crashes may have loaded byte code of another version of Python: compare the client's
with the endpoint's. Otherwise check the memory that the task needs, and the libraries it uses.
"""


class TaskExecutionFailed(TaskError):  # noqa: N818 - the official client's name for it
    """A task raised, or could not be run; has the endpoint's report.

    If the task raised one of Python's own exceptions with plain arguments, that is its `__cause__`.

    Attributes:
        remote_data: the text that the endpoint sent, usually a traceback.
        completion_t: seconds since the epoch, as text, at which the service received the result.
        task_details: facts about the worker (Python version etc.), or ``None``.
    """

    def __init__(
        self,
        remote_data: str,
        completion_t: str | None = None,
        task_details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(remote_data)
        self.remote_data = remote_data
        self.completion_t = completion_t or str(time.time())
        self.task_details = task_details

    def __str__(self) -> str:
        """Return the endpoint's text, with a hint for common problems."""
        body = "\n".join(f" {line}" for line in self.remote_data.strip("\n").splitlines())
        lost = _WORKER_LOST.search(self.remote_data)
        hint = _SERIALIZATION_HINT if lost or _SERIALIZATION.search(self.remote_data) else ""
        return f"\n{body}\n{hint}{_WORKER_LOST_HINT if lost else ''}"


class TaskCancelled(TaskError):  # noqa: N818 - reads like concurrent.futures.CancelledError
    """A task was ended on request, by its owner or by the endpoint's owner."""


class DependencyFailed(TaskError):  # noqa: N818 - reads like TaskCancelled
    """A task that this one needs has failed, so this one was not run.

    Attributes:
        task_id: the id of the failed task; `None` if it was never submitted.
    """

    def __init__(self, text: str, task_id: str | None = None) -> None:
        super().__init__(text)
        self.task_id = task_id


class TaskPending(TaskError):  # noqa: N818 - the official client's name for it
    """A result was requested before the task had ended.

    Attributes:
        reason: the task's state.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the task has not ended yet, its state is '{reason}'")
        self.reason = reason


def suggestion(name: object, known: Iterable[str], otherwise: str) -> str:
    """Return what to say of an unknown name.

    Args:
        name: what was given.
        known: what might have been.
        otherwise: introduces all of these, if none is near.
    """
    import difflib  # noqa: PLC0415 - only for a mistake

    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"{otherwise} {', '.join(known)}"
