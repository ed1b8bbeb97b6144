"""How a node's workers report the ends of tasks."""

from __future__ import annotations

from typing import Any, Protocol

from flux_endpoint.engine.workers.spool import EndHeader

#: Why a worker's task was lost after another process wrote to the worker's connection.
FORGED = (
    "invalid data was written to the worker's connection, perhaps by the task (through a "
    "descriptor that is not its own?), so the worker was ended"
)


class Listener(Protocol):
    """Callbacks for what becomes of the tasks."""

    def ended(self, header: EndHeader, body: bytes) -> None:
        """Handle the end of a task; see `spool.EndHeader`."""

    def late(self, task_ids: list[str]) -> None:
        """Handle tasks that were not started in time and were removed."""

    def running(self, task_id: str, began: float) -> None:
        """Handle that a task has been running for a while; `began` in seconds since the epoch."""

    def printed(self, data: bytes) -> None:
        """Add to the log of the workers' output."""


class TaskEnds:
    """Reports each end once, unless the pool has dropped the task.

    Args:
        listener: gets the ends.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        #: Tasks that run and that the pool has dropped.
        self.unwanted: set[str] = set()

    def result(self, header: EndHeader, body: bytes) -> None:
        """Report an end with its body."""
        if header["id"] in self.unwanted:
            self.unwanted.remove(header["id"])
        else:
            self._listener.ended(header, body)

    def cancelled(
        self, task_id: str, began: float | None = None, printed: dict[str, Any] | None = None
    ) -> None:
        """Report a task that was cancelled.

        Args:
            task_id: the task.
            began: its start in seconds since the epoch, if it ran.
            printed: what it has printed, as entries of a result's details.
        """
        header = {"id": task_id, "end": "cancelled", "began": began}
        self.result(header | ({"printed": printed} if printed else {}), b"")

    def lost(
        self, task_id: str, reason: str, began: float, printed: dict[str, Any] | None = None
    ) -> None:
        """Report a task whose worker was lost; the arguments are as of `cancelled`."""
        header = {"id": task_id, "end": "lost", "began": began}
        self.result(header | ({"printed": printed} if printed else {}), reason.encode())
