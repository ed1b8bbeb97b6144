"""Hold, release and urgency of a task, for its future."""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from flux_endpoint.client.checks import is_int
from flux_endpoint.client.threads import on_client_thread
from flux_endpoint.protocol.resources import HELD, MAX_URGENCY

if TYPE_CHECKING:
    from flux_endpoint.client.output import HasApi

T = TypeVar("T")


class WithUrgency(Future[T]):
    """The methods of a future that change when its task starts.

    Attributes:
        task_id: the task's id; `None` until the service has accepted the task.
    """

    task_id: str | None

    @abstractmethod
    def _service(self) -> HasApi: ...

    @abstractmethod
    def wait_submitted(self, timeout: float | None = None) -> str | None:
        """Wait until the service has accepted the task; return its id."""

    def set_urgency(self, urgency: int) -> bool:
        """Change the urgency of the task, as `flux job urgency` does; it must not have begun.

        Of the tasks that wait for resources, those with the highest urgency start first: jobs in
        Flux's queue, functions and commands in that of the workers.

        Args:
            urgency: 0 (held) to 31 (before all others); 16 is the default.

        Returns:
            Whether the request reached its endpoint; `False` if the task has ended or was never
            submitted. A task that has begun goes on.

        Raises:
            ServiceError: the service refused it (`URGENCY_NOT_SUPPORTED` if its endpoint can't do
                it).
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: the future does not belong to an Executor, or the call would wait inside
                a callback.
            ValueError: `urgency` is not an integer from 0 to 31.
        """
        if not is_int(urgency) or not HELD <= urgency <= MAX_URGENCY:
            raise ValueError(f"urgency must be an integer from 0 to {MAX_URGENCY}, got {urgency!r}")
        return self._set_urgency(urgency)

    def hold(self) -> bool:
        """Keep the task from starting until `release` or `set_urgency`; see `set_urgency`."""
        return self._set_urgency(HELD)

    def release(self) -> bool:
        """Give the task the urgency that it was submitted with, by default 16; it is not held then.

        See `set_urgency` for what is returned and raised.
        """
        return self._set_urgency(None)

    def _set_urgency(self, urgency: int | None) -> bool:
        if self.done():
            return False
        if self.task_id is None and on_client_thread():
            raise RuntimeError("Cannot wait for a task's id from inside a callback")
        task_id = self.wait_submitted()
        if task_id is None:  # its submission failed, or it was cancelled
            return False
        return bool(self._service().api.set_urgency(task_id, urgency).get("delivered"))
