"""Every error that the project raises, in one small tree.

The text of each says what was wrong, where it came from and what to do about it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any


class FluxEndpointError(Exception):
    """Base of all errors that this project raises on purpose."""


#: The base class by its name in the official package.
ComputeError = FluxEndpointError


class ConfigurationError(FluxEndpointError):
    """A setting, a configuration file or a credentials file is missing or wrong."""


class NotFoundError(ConfigurationError):
    """What was named does not exist, such as an endpoint of this machine."""


class BackgroundError(FluxEndpointError):
    """What was started in the background ended before it was ready.

    Attributes:
        exit_status: of its process, negative if a signal ended it.
    """

    def __init__(self, message: str, *, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class StillTryingError(FluxEndpointError):
    """What was started in the background is not ready, since something that it needs is away."""


class SerdeError(FluxEndpointError):
    """Something could not be serialized, deserialized, or selected for that."""

    @property
    def reason(self) -> str:
        """What was wrong."""
        return str(self)


class SerializationError(SerdeError):
    """An object could not be turned into text by the strategy that was asked to."""


class ReadOnlyStrategyError(SerializationError, NotImplementedError):
    """A strategy only reads what older releases wrote."""


class PayloadTooLargeError(SerializationError):
    """A function or its arguments serialize to more than one task may carry."""


class DeserializationError(SerdeError):
    """Text could not be turned back into an object."""


class PackedBufferError(DeserializationError, ValueError):
    """Text is no packed list of buffers."""


class InvalidMessageError(FluxEndpointError, ValueError):
    """A message body does not follow the wire protocol."""


class UnrecognizedProtocolVersionError(InvalidMessageError):
    """The version byte of a message is none that this project reads."""


class AmqpError(FluxEndpointError):
    """Something between us and the message broker failed."""


class UnroutableError(AmqpError):
    """The broker accepted a mandatory message but no queue took it."""


class PublishError(AmqpError):
    """The broker refused a message (a negative confirm), or the connection was closed for good."""


class RefusedMessageError(PublishError):
    """The broker refuses this very message, however often it is sent: it is too large."""


class RecordError(FluxEndpointError):
    """A file that records accepted tasks can't be read or written, such as the journal.

    Attributes:
        damaged: whether its content is wrong; else it may be written later, e.g. when its disk is
            full no more.
    """

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


class EndpointInUseError(FluxEndpointError):
    """Another agent runs the endpoint, here or on another host."""


class EndpointGoneError(FluxEndpointError):
    """The service does not know the endpoint any more: it was deleted, or its token revoked."""


class ServiceError(FluxEndpointError):
    """The REST service refused a request.

    Attributes:
        http_status: HTTP status code of the answer.
        code: machine-readable error code, e.g. ``ENDPOINT_NOT_FOUND``.
        field: dotted name of the request's field that was wrong, when one was.
        retry_after: seconds after which the same request may succeed, when it is refused for now.
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
        """Return the same refusal with a text that knows more of what it was about."""
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
    """The Flux instance that an endpoint ran in is gone, or ends."""


class TaskError(FluxEndpointError):
    """A task ended without a value. Base of what a future raises."""


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
with the endpoint's. Else look at the memory that the task needs, and at what it links to.
"""


class TaskExecutionFailed(TaskError):  # noqa: N818 - the official client's name for it
    """A task raised, or could not be run; carries what the endpoint reported.

    Attributes:
        remote_data: the text the endpoint sent, in general a traceback.
        completion_t: seconds since the epoch, as text, at which the service took the result.
        task_details: what the endpoint said of itself (Python version and the like), or ``None``.
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
        """Return the endpoint's text, and a hint where many have met its like."""
        body = "\n".join(f" {line}" for line in self.remote_data.strip("\n").splitlines())
        lost = _WORKER_LOST.search(self.remote_data)
        hint = _SERIALIZATION_HINT if lost or _SERIALIZATION.search(self.remote_data) else ""
        return f"\n{body}\n{hint}{_WORKER_LOST_HINT if lost else ''}"


class TaskCancelled(TaskError):  # noqa: N818 - reads like concurrent.futures.CancelledError
    """A task was ended on request, by its owner or by the endpoint's."""


class TaskPending(TaskError):  # noqa: N818 - the official client's name for it
    """A result was asked for before the task had ended.

    Attributes:
        reason: the state that the task is in.
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
