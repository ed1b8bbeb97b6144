"""Server-sent events: what a running task prints, for the page of this task."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.operations import OutputAnswer
from flux_endpoint.service.live_output import Known
from flux_endpoint.service.output_follower import OutputFollower
from flux_endpoint.service.page.live import KEEPALIVE, LONGEST, PAUSE
from flux_endpoint.service.page.output import LONGEST as LONGEST_TEXT

#: Maximum number of open streams, of all users and of each.
MOST_STREAMS = 256
MOST_OF_USER = 12
#: The identifier of an event: the attempt, and the positions in both streams after the event.
_IDENTIFIER = re.compile(r"([1-9]\d{0,3}):(\d{1,18}),(\d{1,18})", re.ASCII)


def known_by(identifier: str) -> Known:
    """Return what a page has according to an event's identifier; nothing if it has another form."""
    match = _IDENTIFIER.fullmatch(identifier)
    return Known(int(match[1]), (int(match[2]), int(match[3]))) if match else Known(1, (0, 0))


class OutputStreams:
    """The open streams of all users. Used on the event loop only."""

    def __init__(self) -> None:
        self._of_user: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Number of open streams."""
        return self._of_user.total()

    def enter(self, user_id: str) -> None:
        """Count a stream.

        Raises:
            ServiceError: 429 or 503, there are too many.
        """
        if self._of_user[user_id] >= MOST_OF_USER:
            raise _too_many(f"{MOST_OF_USER} of your pages follow a task's output", 429)
        if self.open >= MOST_STREAMS:
            raise _too_many(f"{MOST_STREAMS} pages follow a task's output", 503)
        self._of_user[user_id] += 1

    def leave(self, user_id: str) -> None:
        """Stop counting a stream."""
        self._of_user[user_id] -= 1
        if not self._of_user[user_id]:
            del self._of_user[user_id]


def _too_many(what: str, status: int) -> ServiceError:
    return ServiceError(
        f"{what}, which is the limit: it is there when the task has ended",
        http_status=status,
        code="TOO_MANY_FOLLOWED",
        retry_after=30,
    )


class OutputResponse(StreamingResponse):
    """Streams a task's output until it ends, the page is closed, or `LONGEST` seconds are over.

    Args:
        follower: gets the output.
        first: its first answer.
        streams: all open streams; this one was counted, and is not any more at the end.
        user_id: whose it is.
        headers: additional headers.
    """

    def __init__(
        self,
        follower: OutputFollower,
        first: OutputAnswer,
        streams: OutputStreams,
        user_id: str,
        headers: Mapping[str, str],
    ) -> None:
        # nginx must pass on what it gets at once.
        more = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(
            _events(follower, first), media_type="text/event-stream", headers={**headers, **more}
        )
        self._streams = streams
        self._user_id = user_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.leave(self._user_id)


async def _events(follower: OutputFollower, answer: OutputAnswer) -> AsyncIterator[bytes]:
    ends = time.monotonic() + LONGEST
    yield b": here\n\n"
    while True:
        if event := _event(follower.known, answer):
            yield event
        elif not answer.ended:
            yield b": still here\n\n"
        if answer.ended:
            yield b"event: ended\ndata: {}\n\n"
            return
        if follower.is_closed or time.monotonic() >= ends:
            return
        await asyncio.sleep(PAUSE)
        try:
            answer = await follower.next(KEEPALIVE)
        except ServiceError:  # the browser asks again, and gets the error as an answer
            return


def _event(known: Known, answer: OutputAnswer) -> bytes:
    """Return the event for what an answer has; empty if it has nothing."""
    parts = {"stdout": answer.stdout, "stderr": answer.stderr}
    texts = {name: part.text[-LONGEST_TEXT:] for name, part in parts.items() if part is not None}
    if not texts:
        return b""
    identifier = f"{known.attempt}:{','.join(map(str, known.positions))}"
    data = {"attempt": answer.attempt, **texts}
    return f"event: output\nid: {identifier}\ndata: {json.dumps(data)}\n\n".encode()
