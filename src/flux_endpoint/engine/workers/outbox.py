"""Ends of tasks on a node: each is reported once, and kept until the agent has it on disk."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from flux_endpoint import logs
from flux_endpoint.engine.workers.spool import EndHeader, Spool, SpooledEnd

log = logging.getLogger(__name__)

#: The most bytes of ends in transit to the agent, and in memory. Beyond either, no task starts
#: until the agent has confirmed some ends.
_WINDOW = 32 << 20
_MAX_IN_MEMORY = 64 << 20
#: Bytes that an end takes in addition to its body.
_OVERHEAD = 200


#: Why a worker's task was lost after another process wrote to the worker's connection.
FORGED = (
    "invalid data was written to the worker's connection, perhaps by the task (through a "
    "descriptor that is not its own?), so the worker was ended"
)


@dataclass(slots=True)
class _End:
    header: EndHeader
    #: In memory, or on disk.
    body: bytes | SpooledEnd
    size: int

    @property
    def kept(self) -> int:
        """Bytes of memory that its body takes."""
        return self.size if isinstance(self.body, bytes) else 0


class EndsOutbox:
    """The ends that the agent does not have on disk yet. Without an agent they go to this disk.

    Args:
        spool: stores them while there is no agent.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._ends: dict[str, _End] = {}
        self._unsent: deque[str] = deque()
        #: Bytes in transit, and in memory.
        self._under_way = 0
        self._in_memory = 0
        #: Whether there is no agent.
        self._alone = False
        self._failed = False

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def task_ids(self) -> list[str]:
        """The tasks whose ends are here."""
        return list(self._ends)

    @property
    def is_full(self) -> bool:
        """Whether no task should start until the agent has confirmed some ends."""
        return self._in_memory > _MAX_IN_MEMORY

    def add(self, header: EndHeader, body: bytes) -> None:
        """Keep the end of a task."""
        task_id = header["id"]
        end = _End(header, body, len(body) + _OVERHEAD)
        self._ends[task_id] = end
        self._in_memory += end.kept
        self._unsent.append(task_id)
        if self._alone:
            self._write(end)

    def take(self) -> list[tuple[EndHeader, bytes]]:
        """Return the ends to send now."""
        batch: list[tuple[EndHeader, bytes]] = []
        while self._unsent and self._under_way < _WINDOW:
            end = self._ends.get(self._unsent.popleft())
            if end is None:
                continue
            try:
                body = end.body if isinstance(end.body, bytes) else end.body.body()
            except OSError as error:
                logs.event(log, logging.ERROR, "an end can't be read again", reason=error)
                end.header = {"id": end.header["id"], "end": "lost"}
                body = f"its end can't be read from disk any more: {error}".encode()
            self._under_way += end.size
            batch.append((end.header, body))
        return batch

    def settle(self, task_ids: Iterable[str]) -> None:
        """Discard ends that the agent has on disk."""
        for task_id in task_ids:
            end = self._ends.pop(task_id, None)
            if end is not None:
                self._in_memory -= end.kept
                self._under_way = max(0, self._under_way - end.size)
        if not self._ends:
            self._unsent.clear()
            self._under_way = 0
            self._spool.clear()

    def lose_agent(self) -> None:
        """Write all ends, also future ones, to disk."""
        self._alone = True
        self._unsent.clear()
        self._under_way = 0
        for end in self._ends.values():
            self._write(end)

    def meet_agent(self) -> None:
        """Send all kept ends again."""
        self._alone = False
        self._unsent = deque(self._ends)
        self._under_way = 0

    def _write(self, end: _End) -> None:
        if not isinstance(end.body, bytes):
            return
        try:
            spooled = self._spool.add(end.header, end.body)
        except OSError as error:
            if not self._failed:
                logs.event(log, logging.ERROR, "ends of tasks stay in memory", reason=error)
            self._failed = True
            return
        self._in_memory -= end.kept
        end.body = spooled


class Listener(Protocol):
    """Callbacks for what becomes of the tasks."""

    def ended(self, header: EndHeader, body: bytes) -> None:
        """Handle the end of a task; see `spool.EndHeader`."""

    def late(self, task_ids: list[str]) -> None:
        """Handle tasks that were not started in time and were removed."""

    def running(self, task_id: str, began: float) -> None:
        """Handle that a task has been running for a while; `began` in seconds since the epoch."""

    def followed(self, task_id: str, streams: dict[str, Any]) -> None:
        """Report parts of what a followed task prints, by stream."""

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
        #: Tasks that are ended because they run for too long, with their limits (s).
        self.overdue: dict[str, float] = {}

    def result(self, header: EndHeader, body: bytes) -> None:
        """Report an end with its body."""
        if header["id"] in self.unwanted:
            self.unwanted.remove(header["id"])
        else:
            self._listener.ended(header, body)

    def cancelled(
        self, task_id: str, began: float | None = None, printed: dict[str, Any] | None = None
    ) -> None:
        """Report a task that was cancelled, or whose time was over.

        Args:
            task_id: the task.
            began: its start in seconds since the epoch, if it ran.
            printed: what it has printed, as entries of a result's details.
        """
        limit = self.overdue.pop(task_id, None)
        end, body = ("cancelled", b"") if limit is None else ("overdue", b"%r" % limit)
        header = {"id": task_id, "end": end, "began": began}
        self.result(header | ({"printed": printed} if printed else {}), body)

    def lost(
        self, task_id: str, reason: str, began: float, printed: dict[str, Any] | None = None
    ) -> None:
        """Report a task whose worker was lost; the arguments are as of `cancelled`."""
        header = {"id": task_id, "end": "lost", "began": began}
        self.result(header | ({"printed": printed} if printed else {}), reason.encode())
