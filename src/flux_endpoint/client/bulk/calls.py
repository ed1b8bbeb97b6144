"""The states of a group's calls, in 21 bytes each, and the ends that nobody has taken yet."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Sequence
from itertools import islice

from flux_endpoint.client.bulk.task_ids import TaskIds
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.results import TaskEnd, from_message

#: The most bytes of ends that are kept until they are taken; others are requested from the service.
MAX_KEPT = 32 * 2**20
#: The most results that are kept before the answer to their submission.
MAX_EARLY = 8192
#: Bytes that an end needs besides its text, about.
_OVERHEAD = 1024

#: States of a call. `UNKNOWN`: one of an earlier program that may have ended.
UNKNOWN, OPEN, ENDED = range(3)


class Message:
    """The message of an end, which is read when the end is taken.

    Args:
        body: the message.
        timestamp: its time (s since the epoch), if known.
    """

    __slots__ = ("_body", "_timestamp", "size")

    def __init__(self, body: bytes, timestamp: int | None) -> None:
        self._body = body
        self._timestamp = timestamp
        self.size = len(body) + 128

    @property
    def end(self) -> TaskEnd:
        """The end."""
        return from_message(self._body, self._timestamp)


class Answer:
    """An end that the service has answered."""

    __slots__ = ("end", "size")

    def __init__(self, end: TaskEnd) -> None:
        self.end = end
        self.size = len(end.value) + len(end.error or "") + _OVERHEAD


class CallStates:
    """Any thread may use it. No method does I/O, and only `wait_for_end` waits.

    A call's end is kept until it is taken, as long as there is room. Afterwards, only the service
    has it.

    Args:
        max_kept: the most bytes of ends to keep.
    """

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._max_kept = max_kept
        self._ids = TaskIds()
        self._states = bytearray()
        self._in_order_of_end = array("I")
        self._kept: dict[int, Message | Answer] = {}
        self._kept_bytes = 0
        self._awaited: dict[int, ComputeFuture] = {}
        #: Ends of unknown tasks during a submission, by task id; `None` for one: there was no room
        #: for it. `None` for all: there is no submission.
        self._early: dict[str, Message | Answer | None] | None = None
        self._early_lost = False
        self._openings = 0
        self._changed = threading.Condition()

    # The calls.

    def __len__(self) -> int:
        return len(self._states)

    def task_id(self, index: int) -> str:
        """Return the id of a call's task."""
        return self._ids[index]

    def find(self, task_id: str) -> int | None:
        """Return the index of a task's call; `None`: it is none of the group's."""
        return self._ids.find(task_id)

    def begin(self) -> None:
        """Keep ends of unknown tasks from now on: the answers with their ids may come later."""
        with self._changed:
            self._early = {}

    def add(self, task_ids: Sequence[str], state: int = OPEN) -> None:
        """Append calls that are all in one state.

        Args:
            task_ids: the ids of their tasks.
            state: `UNKNOWN` or `OPEN`.

        Raises:
            ValueError: an id is not a UUID.
        """
        with self._changed:
            self._ids.add(task_ids)
            self._states.extend(bytes([state]) * len(task_ids))
            for task_id in task_ids if self._early else ():
                if self._early and task_id in self._early:
                    early = self._early.pop(task_id)
                    self._kept_bytes -= early.size if early is not None else 0
                    self._end(task_id, early)

    def complete(self) -> bool:
        """Note that all calls are known; return whether ends may have been missed before."""
        with self._changed:
            left = (self._early or {}).values()
            self._kept_bytes -= sum(each.size for each in left if each is not None)
            self._early = None
            self._changed.notify_all()
            return self._early_lost

    # Their ends.

    @property
    def ended(self) -> int:
        """Number of calls that are known to have ended."""
        return len(self._in_order_of_end)

    @property
    def are_over(self) -> bool:
        """Whether all calls have ended."""
        return self._early is None and self.ended == len(self._states)

    def end(self, task_id: str, end: Message | Answer | None) -> ComputeFuture | None:
        """Note the end of a call, unless it is known.

        Args:
            task_id: its task; it may be none of the group's.
            end: the end; `None`: it shall not be kept.

        Returns:
            The future to resolve, if one waits for it.
        """
        with self._changed:
            future = self._end(task_id, end)
            self._changed.notify_all()
            return future

    def _end(self, task_id: str, end: Message | Answer | None) -> ComputeFuture | None:
        index = self._ids.find(task_id)
        if index is None:
            self._keep_early(task_id, end)
            return None
        if self._states[index] != ENDED:
            self._states[index] = ENDED
            self._in_order_of_end.append(index)
        future = self._awaited.pop(index, None)
        if (
            future is None
            and end is not None
            and index not in self._kept
            and self._kept_bytes + end.size <= self._max_kept
        ):
            self._kept[index] = end
            self._kept_bytes += end.size
        return future

    def _keep_early(self, task_id: str, end: Message | Answer | None) -> None:
        if self._early is None or task_id in self._early:
            return
        if len(self._early) >= MAX_EARLY:
            self._early_lost = True
        elif end is not None and self._kept_bytes + end.size <= self._max_kept:
            self._early[task_id] = end
            self._kept_bytes += end.size
        else:
            self._early[task_id] = None

    def await_end(self, index: int, future: ComputeFuture) -> bool:
        """Have `end` return a call's future; return `False` if the call has ended already."""
        with self._changed:
            if self._states[index] == ENDED:
                return False
            self._awaited[index] = future
            return True

    @property
    def are_awaited(self) -> bool:
        """Whether a future waits for an end."""
        return bool(self._awaited)

    def state(self, index: int) -> int:
        """Return the state of a call."""
        return self._states[index]

    def take(self, index: int) -> TaskEnd | None:
        """Return a call's end and forget it; `None`: it is not kept."""
        with self._changed:
            kept = self._kept.pop(index, None)
            if kept is not None:
                self._kept_bytes -= kept.size
        return None if kept is None else kept.end

    def is_kept(self, index: int) -> bool:
        """Return whether a call's end is kept."""
        return index in self._kept

    def ended_from(self, position: int) -> Sequence[int]:
        """Return some calls in the order of their ends, from a position in that order."""
        return self._in_order_of_end[position : position + 1024]

    def wait_for_end(self, count: int, timeout: float | None) -> bool:
        """Wait until so many calls have ended; return whether they have in time (s)."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ended >= count, timeout)

    # What is not known.

    def in_state(self, state: int, count: int, start: int = 0) -> list[int]:
        """Return the first calls in a state.

        Args:
            state: the state.
            count: the most calls.
            start: the first call to consider.
        """
        wanted, found = bytes([state]), list[int]()
        while len(found) < count:
            start = self._states.find(wanted, start)
            if start < 0:
                break
            found.append(start)
            start += 1
        return found

    def opened(self) -> None:
        """Note that the queue of results was opened, and has all ends from now on."""
        with self._changed:
            self._openings += 1

    @property
    def openings(self) -> int:
        """How often the queue was opened: answers to earlier requests may be outdated."""
        return self._openings

    def still_open(self, indices: Iterable[int]) -> None:
        """Note that calls had not ended when the service was asked."""
        with self._changed:
            for index in indices:
                if self._states[index] == UNKNOWN:
                    self._states[index] = OPEN


def chunks(indices: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    """Yield the indices in parts of at most `size`."""
    rest = iter(indices)
    return iter(lambda: list(islice(rest, size)), [])
