"""Output of running tasks that somebody follows: on its way from endpoints to requests that wait.

Nothing of it is stored. An endpoint sends a task's output only while somebody asks for it, and the
end of it comes with the task's result.
"""

import asyncio
import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.limits import MAX_OUTPUT
from flux_endpoint.protocol.operations import BEYOND
from flux_endpoint.service.changes import ChangeListener, ReportedEnd

#: The most tasks that are followed, and of these of one user.
MOST_FOLLOWED, MOST_OF_USER = 512, 16
#: Seconds for which an endpoint sends a task's output, and after which it is asked again.
WANTED, AGAIN = 30.0, 10.0
#: Seconds for which output after a gap waits for what is between.
GAP_WAIT = 1.0
#: Seconds after the last request after which a running task's output is forgotten.
_FORGOTTEN_AFTER = 60.0
#: The most bytes of memory that all output takes here (64 MiB), and that of one stream; each part
#: counts as so many at least.
_MOST_OF_ALL, _MOST_KEPT, _LEAST_PART = 64 << 20, MAX_OUTPUT, 256
#: The most bytes of memory that Python needs for a byte of UTF-8: a character has one width in all
#: of a text.
_WIDEST = 4
#: The most attempts at a task whose output waits here.
_MOST_ATTEMPTS = 3
STREAMS = ("stdout", "stderr")


@dataclass(frozen=True)
class OutputPart:
    """A part of a stream: the positions of its first byte and after its last one, and its text."""

    begin: int
    end: int
    text: str

    @classmethod
    def parse(cls, value: Any) -> Self | None:
        """Return the part in an endpoint's event, a list; `None`: it is not one."""
        match value:
            case [int() as begin, int() as end, str() as text] if (
                0 <= begin <= end < 2**62 and len(text) <= MAX_OUTPUT
            ):
                return cls(begin, end, text.encode(errors="replace").decode())
        return None

    def after(self, position: int) -> Self:
        """Return the part from a position on, or from the next character on."""
        if position <= self.begin:
            return self
        data = self.text.encode(errors="replace")
        if len(data) != self.end - self.begin:  # with replaced characters it can't be divided
            return self
        text = data[position - self.begin :].decode(errors="ignore")
        return type(self)(self.end - len(text.encode()), self.end, text)


class _Stream:
    """The latest parts of a stream.

    What comes after a gap waits for a moment, since another service may have what is between.
    """

    def __init__(self) -> None:
        self._parts: deque[OutputPart] = deque()
        self._size = 0
        self._early: list[OutputPart] = []
        #: Monotonic time until which they wait.
        self.due = math.inf

    @property
    def end(self) -> int:
        """The position after the last byte."""
        return self._parts[-1].end if self._parts else 0

    def add(self, part: OutputPart, most: int, now: float) -> bool:
        """Add a part, and keep at most so many bytes; return False if all of it is known."""
        if part.end <= self.end:
            return False
        self._early.append(part)
        self._early.sort(key=lambda each: each.begin)
        while self._early and self._early[0].begin <= self.end:
            self._append(self._early.pop(0))
        self.due = min(self.due, now + GAP_WAIT) if self._early else math.inf
        self.release(now)
        self.keep(most)
        return True

    def release(self, now: float) -> None:
        """Accept the parts after a gap if they have waited long enough."""
        if now >= self.due:
            for part in self._early:
                self._append(part)
            self._early.clear()
            self.due = math.inf

    def _append(self, part: OutputPart) -> None:
        if part.end > self.end:
            part = part.after(self.end)
            self._parts.append(part)
            self._size += _size(part)

    def keep(self, most: int) -> None:
        """Keep at most so many bytes, the latest; the end stays known."""
        if sum(map(_size, self._early)) > most // 2:
            self.release(math.inf)
        most -= sum(map(_size, self._early))
        while self._size > most and len(self._parts) > 1:
            self._size -= _size(self._parts.popleft())
        if self._size > most and self._parts:
            (part,) = self._parts
            shorter = part.after(part.end - most // _WIDEST)
            if _size(shorter) > most:  # it can't be divided
                shorter = OutputPart(part.end, part.end, "")
            self._parts[0], self._size = shorter, _size(shorter)

    def after(self, position: int) -> OutputPart | None:
        """Return what is known after a position, up to the next gap; `None`: nothing."""
        parts: list[OutputPart] = []
        for part in self._parts:
            if parts and part.begin > parts[-1].end:
                break
            if part.end > position:
                parts.append(part)
        if not parts:
            return None
        first = parts[0].after(position)
        text = "".join([first.text, *(part.text for part in parts[1:])])
        return OutputPart(first.begin, parts[-1].end, text)


def _size(part: OutputPart) -> int:
    return max(sys.getsizeof(part.text), _LEAST_PART)


def _new_streams() -> dict[str, _Stream]:
    return {name: _Stream() for name in STREAMS}


@dataclass(frozen=True)
class Known:
    """A follower's position in a task's output: an attempt, and the bytes of both streams."""

    attempt: int
    positions: tuple[int, ...]

    def positions_in(self, attempt: int) -> tuple[int, ...]:
        """Return the positions in another attempt's streams; of no interest stays of none."""
        if attempt == self.attempt:
            return self.positions
        return tuple(0 if position < BEYOND else position for position in self.positions)


class FollowedTask:
    """A running task whose output somebody follows. Used under the lock of `LiveOutput`."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        #: The streams of the latest attempts, in order.
        self.attempts = {1: _new_streams()}
        self.waiting: list[Callable[[], object]] = []
        self.has_ended = False
        #: Monotonic times: when its endpoint is asked again, and when it was last followed.
        self.asked_again_at = 0.0
        self.seen = 0.0

    @property
    def known(self) -> Known:
        """The known part of its output."""
        attempt, streams = next(reversed(self.attempts.items()))
        return Known(attempt, tuple(streams[name].end for name in STREAMS))

    def streams_of(self, attempt: int) -> dict[str, _Stream]:
        """Return an attempt's streams; none if they were dropped for those of later attempts."""
        if attempt > max(self.attempts):
            self.attempts[attempt] = _new_streams()
            while len(self.attempts) > _MOST_ATTEMPTS:
                del self.attempts[min(self.attempts)]
        return self.attempts.get(attempt, {})

    def all_streams(self) -> Iterator[_Stream]:
        """Yield the streams of all attempts."""
        for streams in self.attempts.values():
            yield from streams.values()

    def after(self, known: Known) -> tuple[int, dict[str, OutputPart]]:
        """Return the next attempt with something that a follower does not know, and this."""
        for attempt, streams in self.attempts.items():
            positions = known.positions_in(attempt)
            found = {
                name: part
                for name, position in zip(STREAMS, positions, strict=True)
                if (part := streams[name].after(position)) is not None
            }
            if found and attempt >= known.attempt:
                return attempt, found
        return known.attempt, {}


class OtherServices(Protocol):
    """The other services of the database; see `OutputFanout`."""

    @property
    def follow(self) -> bool:
        """Whether some of them follow tasks."""

    def followed(self, task_id: str) -> None:
        """Say that a user of this service follows a task."""

    def printed(self, task_id: str, streams: dict[str, Any]) -> None:
        """Pass on parts of a task's streams, if it is followed elsewhere."""

    def ended(self, task_ids: Collection[str]) -> None:
        """Pass on that tasks have ended, if they are followed elsewhere."""


class NoOtherServices:
    """Stands for the other services where there are none."""

    follow = False

    def followed(self, task_id: str) -> None:
        """See `OtherServices`."""

    def printed(self, task_id: str, streams: dict[str, Any]) -> None:
        """See `OtherServices`."""

    def ended(self, task_ids: Collection[str]) -> None:
        """See `OtherServices`."""


class LiveOutput(ChangeListener):
    """All followed tasks. Safe to use from several threads.

    Args:
        clock: a monotonic clock, in seconds.

    Attributes:
        others: the other services of the database.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.others: OtherServices = NoOtherServices()
        self._clock = clock
        self._lock = threading.Lock()
        self._tasks: dict[str, FollowedTask] = {}
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the service ends: all waits are over."""
        return self._is_closed

    def follow(self, task_id: str, user_id: str) -> tuple[bool, Known]:
        """Follow a task, or go on following it.

        Returns:
            Whether its endpoint must be asked now, and what is known here.

        Raises:
            ServiceError: 429 or 503, too many are followed.
        """
        with self._lock:
            now = self._clock()
            self._forget_old(now)
            task = self._tasks.get(task_id)
            if task is None:
                self._require_room(user_id)
                task = self._tasks[task_id] = FollowedTask(user_id)
                self._share_memory()
            task.seen = now
            is_due = now >= task.asked_again_at
            if is_due:
                task.asked_again_at = now + AGAIN
            return is_due, task.known

    def _forget_old(self, now: float) -> None:
        # Followers may ask for what the end of an ended task lacks, unless others need its room.
        of_ended = AGAIN if len(self._tasks) < MOST_FOLLOWED else -math.inf
        old = [
            task_id
            for task_id, task in self._tasks.items()
            if not task.waiting
            and now - task.seen > (of_ended if task.has_ended else _FORGOTTEN_AFTER)
        ]
        for task_id in old:
            del self._tasks[task_id]

    @property
    def _share(self) -> int:
        """The bytes of memory that each stream may take."""
        attempts = sum(len(task.attempts) for task in self._tasks.values())
        return min(_MOST_KEPT, _MOST_OF_ALL // (len(STREAMS) * max(1, attempts)))

    def _share_memory(self) -> None:
        """Have each stream keep within its share, which is smaller the more there are."""
        if (share := self._share) < _MOST_KEPT:
            for task in self._tasks.values():
                for stream in task.all_streams():
                    stream.keep(share)

    def _require_room(self, user_id: str) -> None:
        of_users = Counter(task.user_id for task in self._tasks.values() if not task.has_ended)
        if of_users[user_id] >= MOST_OF_USER:
            raise _too_many(f"the output of {MOST_OF_USER} of your tasks is followed", 429)
        if len(self._tasks) >= MOST_FOLLOWED:
            raise _too_many(f"the output of {MOST_FOLLOWED} tasks is followed", 503)

    def known(
        self, task_id: str, known: Known, *, knows_attempts: bool = True
    ) -> tuple[int, dict[str, OutputPart]]:
        """Return what is there of a task's output that a follower does not know; see `news`."""
        with self._lock:
            task = self._tasks.get(task_id)
            for each in () if task is None else task.all_streams():
                each.release(self._clock())
            attempt, found = (known.attempt, {}) if task is None else task.after(known)
        return (attempt, found) if attempt == 1 or knows_attempts else (1, {})

    async def news(
        self, task_id: str, known: Known, seconds: float, *, knows_attempts: bool = True
    ) -> tuple[int, dict[str, OutputPart]]:
        """Wait until there is output that the follower does not know, or the task has ended.

        Args:
            task_id: a task that is followed.
            known: what the follower has.
            seconds: the longest wait.
            knows_attempts: whether it is interested in later attempts.

        Returns:
            The attempt, and its output by stream; nothing if there is none.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        with self._waiting(task_id, wake) as task:
            if task is None:
                return known.attempt, {}
            until = self._clock() + seconds
            while True:
                changed.clear()  # first: what comes after the look wakes this again
                is_over = task.has_ended or self._is_closed
                attempt, found = self.known(task_id, known, knows_attempts=knows_attempts)
                now = self._clock()
                if found or is_over or now >= until:
                    return attempt, found
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), min(until, self._due(task)) - now)

    def _due(self, task: FollowedTask) -> float:
        """Return the monotonic time at which what comes after a gap waits no longer."""
        with self._lock:
            return min(each.due for each in task.all_streams())

    @contextmanager
    def _waiting(self, task_id: str, wake: Callable[[], None]) -> Iterator[FollowedTask | None]:
        with self._lock:
            task = self._tasks.get(task_id)
            if task is not None:
                task.waiting.append(wake)
        try:
            yield task
        finally:
            if task is not None:
                with self._lock:
                    task.waiting.remove(wake)
                    task.seen = self._clock()

    def output_arrived(self, task_id: str, streams: dict[str, Any]) -> None:
        """See `ChangeListener`."""
        self.add(task_id, streams)
        self.others.printed(task_id, streams)

    def add(self, task_id: str, streams: dict[str, Any]) -> None:
        """Add parts of the streams of a running task, from its endpoint or another service."""
        with self._lock:
            task = self._tasks.get(task_id)
            if task is None:
                return
            parts = {name: OutputPart.parse(streams.get(name)) for name in STREAMS}
            attempts = len(task.attempts)
            kept = task.streams_of(_attempt_in(streams))
            if len(task.attempts) > attempts:
                self._share_memory()
            share, now = self._share, self._clock()
            added = [
                kept[name].add(part, share, now) for name, part in parts.items() if part and kept
            ]
            waiting = list(task.waiting) if any(added) else []
        for wake in waiting:
            wake()

    def tasks_ended(self, ends: Sequence[ReportedEnd]) -> None:
        """See `ChangeListener`."""
        if self._tasks or self.others.follow:  # otherwise nobody follows, as mostly
            task_ids = {each.task_id for each in ends}
            self.end(task_ids)
            self.others.ended(task_ids)

    def end(self, task_ids: Collection[str]) -> None:
        """Note that tasks have ended."""
        waiting: list[Callable[[], object]] = []
        with self._lock:
            for task_id in self._tasks.keys() & set(task_ids):
                self._tasks[task_id].has_ended = True
                waiting += self._tasks[task_id].waiting
        for wake in waiting:
            wake()

    def close(self) -> None:
        """End all waits: the service ends."""
        with self._lock:
            self._is_closed = True
            waiting = [wake for task in self._tasks.values() for wake in task.waiting]
        for wake in waiting:
            wake()


def _attempt_in(streams: dict[str, Any]) -> int:
    attempt = streams.get("attempt")
    return attempt if type(attempt) is int and attempt >= 1 else 1


def _too_many(what: str, status: int) -> ServiceError:
    return ServiceError(
        f"{what}, which is the limit: it is there when the task has ended",
        http_status=status,
        code="TOO_MANY_FOLLOWED",
        retry_after=30,
    )
