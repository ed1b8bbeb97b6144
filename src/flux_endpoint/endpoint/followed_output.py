"""Followed tasks: each attempt is followed as it begins, also the first one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flux_endpoint.endpoint.attempt_ends import read_details
from flux_endpoint.endpoint.retries import Retries, attempt_of, task_of
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask, output_event
from flux_endpoint.engine.tail import StreamTail
from flux_endpoint.protocol.envelope import OUTPUT, OUTPUT_SIZES
from flux_endpoint.protocol.messages import OutputWanted

#: The most followed tasks.
MOST_FOLLOWED = 512
#: A byte that is not UTF-8, as a result has it.
_REPLACED = re.compile(rb"\\x([89a-f][0-9a-f])")


class FollowRequest(NamedTuple):
    """The arguments of `Engine.follow_output`."""

    engine_id: str
    seconds: float
    known: tuple[int, int]


class FollowedOutput:
    """Which tasks the service follows. Used by the agent's thread only.

    Args:
        retries: the tasks that may have several attempts.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, retries: Retries, clock: Callable[[], float] = time.monotonic) -> None:
        self._retries = retries
        self._clock = clock
        #: Until when each task is followed.
        self._until: dict[str, float] = {}

    def wanted(self, request: OutputWanted) -> FollowRequest | None:
        """Take a request; return what the engine is to follow now.

        Returns:
            `None`: the task waits for its next attempt, which is followed when it begins. So is
            the first attempt of a task that has not arrived yet.
        """
        task_id, now = str(request.task_id), self._clock()
        self._until = {each: until for each, until in self._until.items() if until > now}
        if task_id in self._until or len(self._until) < MOST_FOLLOWED:
            self._until[task_id] = now + request.seconds
        engine_id = self._retries.engine_id(task_id)
        if engine_id is None:
            return None
        is_same = attempt_of(engine_id) == request.attempt
        known = (request.stdout, request.stderr) if is_same else (0, 0)
        return FollowRequest(engine_id, request.seconds, known)

    def begins(self, attempt: EngineTask) -> FollowRequest | None:
        """Return what the engine is to follow of an attempt that begins."""
        left = self._left(attempt.task_id)
        return FollowRequest(attempt.task_id, left, (0, 0)) if left > 0 else None

    def rest(self, failed: EngineResult) -> list[EngineEvent]:
        """Return the output of a failed attempt, if its task is followed: no result brings it."""
        if self._left(failed.task_id) <= 0:
            return []
        details = read_details(failed.body)
        return [
            output_event(failed.task_id, {text: part})
            for text, dropped in OUTPUT
            for part in _parts(
                details.get(text), details.get(dropped, 0), details.get(OUTPUT_SIZES[text])
            )
        ]

    def _left(self, engine_id: str) -> float:
        return self._until.get(task_of(engine_id), 0.0) - self._clock()


def _parts(printed: Any, before: Any, size: Any) -> Iterator[tuple[int, int, str]]:
    """Yield the parts of a stream's end, each of which fits into an event.

    Args:
        printed: the end as text.
        before: the bytes before it.
        size: the bytes of the whole stream, if the text has sequences for some of them.
    """
    if not isinstance(printed, str) or not isinstance(before, int):
        return
    data = printed.encode(errors="replace")
    if isinstance(size, int) and (replaced := (len(data) - (size - before)) // 3) > 0:
        # Positions count bytes, and each of these is a sequence of four characters.
        data = _REPLACED.sub(lambda found: bytes([int(found[1], 16)]), data, replaced)
    tail = StreamTail(len(data))
    tail.add(data)
    position = 0
    while position < len(data):
        begin, position, text = tail.part(position)
        if not text:  # it ends within a character
            position, text = len(data), data[begin:].decode(errors="backslashreplace")
        yield before + begin, before + position, text
