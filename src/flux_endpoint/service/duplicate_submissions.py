"""Submissions that a client repeats because it did not get the answer.

The official client sends no idempotency key, and repeats a submission whose connection broke or
whose answer was lost. Each of its tasks would then run twice. But two equal submissions may also be
intended, in sequence or at the same time. So a submission counts as a repetition only if the
connection of an equal one was lost before the answer was written. Each lost answer serves one
repetition.
"""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from fastapi.responses import Response

from flux_endpoint.errors import ServiceError
from flux_endpoint.service.disconnects import Connection

#: Seconds for which an answer is kept for a repetition. The official client repeats within 10 s.
REPEATED_WITHIN = 60.0

#: Maximum number of undelivered answers; the oldest are dropped first.
MAX_KEPT = 1000

# Seconds that a repetition waits until the first request is done.
_TIMEOUT = 50.0


@dataclass(eq=False)
class _Answer:
    """An answer, and the connection on which it goes out."""

    key: Hashable
    connection: Connection
    response: Future[Response | None] = field(default_factory=Future)


class DuplicateSubmissions:
    """Keeps answers until they are written. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Hashable, list[_Answer]] = {}
        #: Undelivered answers and when their connections were lost, the oldest first.
        self._lost: dict[_Answer, float] = {}

    def answer(
        self, key: Hashable, connection: Connection, act: Callable[[], Response]
    ) -> Response:
        """Return the kept answer to an equal request that lost its connection, or call `act`.

        Args:
            key: equal for two requests if one may repeat the other.
            connection: the connection of this request.
            act: handles the request. Its errors are not kept.

        Raises:
            ServiceError: 503, the earlier request is still in progress; or the client of this one
                has disconnected, and may have repeated it already.
        """
        earlier = self._adopt(key, connection)
        if earlier is not None:
            try:
                response = earlier.response.result(_TIMEOUT)
            except TimeoutError:
                raise ServiceError(
                    "this submission repeats one that is still being processed",
                    http_status=503,
                    code="SUBMISSION_IN_PROGRESS",
                ) from None
            if response is not None:
                return response
        mine = _Answer(key, connection)
        with self._lock:
            if connection.is_lost:
                raise ServiceError(
                    "the connection was lost before this submission was processed",
                    http_status=503,
                    code="CONNECTION_LOST",
                )
            self._kept.setdefault(key, []).append(mine)
        connection.on_end(partial(self._ended, mine, connection))
        try:
            response = act()
        except BaseException:
            self._drop(mine)
            mine.response.set_result(None)
            raise
        mine.response.set_result(response)
        return response

    def _adopt(self, key: Hashable, connection: Connection) -> _Answer | None:
        with self._lock:
            self._expire()
            kept = self._kept.get(key, ())
            answer = next((each for each in kept if each.connection.is_lost), None)
            if answer is None:
                return None
            answer.connection = connection
            self._lost.pop(answer, None)
        connection.on_end(partial(self._ended, answer, connection))
        return answer

    def _ended(self, answer: _Answer, connection: Connection, written: bool) -> None:
        if written:
            self._drop(answer)
            return
        with self._lock:
            kept = answer in self._kept.get(answer.key, ())
            if kept and answer.connection is connection:  # otherwise a repetition has the answer
                self._lost[answer] = time.monotonic()

    def _drop(self, answer: _Answer) -> None:
        with self._lock:
            self._forget(answer)

    def _forget(self, answer: _Answer) -> None:
        self._lost.pop(answer, None)
        kept = self._kept.get(answer.key, [])
        if answer in kept:
            kept.remove(answer)
        if not kept:
            self._kept.pop(answer.key, None)

    def _expire(self) -> None:
        before = time.monotonic() - REPEATED_WITHIN
        for answer, lost_at in list(self._lost.items()):
            if lost_at >= before and len(self._lost) <= MAX_KEPT:
                return
            self._forget(answer)
