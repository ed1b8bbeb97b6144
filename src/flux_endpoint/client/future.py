"""The future of one task."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

log = logging.getLogger(__name__)

# One for all futures, told once a batch. A future's own condition won't do: `result` takes every
# notification that is not the end for a timeout.
_submitted = threading.Condition()


def _tell_waiters(_: object = None) -> None:
    with _submitted:
        _submitted.notify_all()


class ComputeFuture(Future[Any]):
    """A `concurrent.futures.Future` that knows its task.

    It can be cancelled until its task is sent to the service; from then on it is running.

    Attributes:
        task_id: the task's id, `None` until the service has accepted the task.
        task_group_id: the group whose queue the result comes from.
        endpoint_id: where the task was sent, `None` if it was reloaded.
        function_id: what the task runs, `None` until it is registered, or if it was reloaded.
    """

    def __init__(
        self,
        task_id: str | None = None,
        *,
        task_group_id: str | None = None,
        endpoint_id: str | None = None,
    ) -> None:
        super().__init__()
        self.task_id = task_id
        self.task_group_id = task_group_id
        self.endpoint_id = endpoint_id
        self.function_id: str | None = None
        self._load: Callable[[str], Any] | None = None

    def wait_submitted(self, timeout: float | None = None) -> str | None:
        """Wait until the service has accepted the task.

        Args:
            timeout: seconds to wait at most.

        Returns:
            The task's id; `None` if the time is over or the future has ended without one.
        """
        if self.task_id is None:
            self.add_done_callback(_tell_waiters)
            with _submitted:
                _submitted.wait_for(lambda: self.task_id is not None or self.done(), timeout)
        return self.task_id

    @staticmethod
    def _accepted(futures: list[ComputeFuture], task_ids: list[str], function_id: str) -> None:
        """Give each of `futures` its task's id."""
        for future, task_id in zip(futures, task_ids, strict=True):
            future.task_id = task_id
            future.function_id = function_id
        _tell_waiters()

    def _try_result(self, value: Any) -> None:
        """Resolve with `value`, unless the future has ended already."""
        self._settle(self.set_result, value)

    def _try_exception(self, error: BaseException) -> None:
        """Resolve with `error`, unless the future has ended already."""
        self._settle(self.set_exception, error)

    def _settle(self, end: Callable[[Any], None], value: Any) -> None:
        try:
            end(value)
        except InvalidStateError:
            return
        except BaseException:  # of a callback; our thread has other futures to resolve
            log.exception("a callback of task %s raised", self.task_id)
