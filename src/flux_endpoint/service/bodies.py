"""Request bodies: received into temporary files, then handled as memory allows.

A body that is not small is written to a temporary file while it arrives, unless it is of a medium
size and there is memory left for such ones. When it is complete, it waits for its share of a common
memory budget, and only then is it read and parsed. So slow senders hold little memory, large
requests are handled one after the other, and small requests don't wait for them.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO

from anyio import to_thread
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.limits import MAX_REQUEST_BYTES
from flux_endpoint.service.errors import error_answer
from flux_endpoint.service.identity import caller_id

#: Bodies up to this many bytes stay in memory and are handled at once.
SMALL_BYTES = 64 * 2**10

#: Bodies up to this many bytes stay in memory while all of them together take less than
#: `ARRIVING_BYTES`. A temporary file takes the CPU a millisecond for each MiB.
MEDIUM_BYTES = 2 * 2**20
ARRIVING_BYTES = 32 * 2**20
#: Received pieces of fewer bytes are gathered: a piece of two bytes takes 45 in memory by itself.
_PIECE_BYTES = 4 * 2**10

#: Memory budget (bytes) for the bodies of all requests that are handled at a time. The parsed
#: objects take a few times as much. One user gets at most half of it.
HANDLED_BYTES = 2 * MAX_REQUEST_BYTES

#: Maximum bytes of bodies in temporary files, in total and per user.
WAITING_BYTES = 16 * MAX_REQUEST_BYTES
USER_WAITING_BYTES = 4 * MAX_REQUEST_BYTES

#: Maximum number of strings in a JSON body plus bytes outside of them: each may become an object.
STRUCTURE_BYTES = 512 * 2**10

# Seconds that a complete body waits for its share of memory. nginx waits twice as long for a reply.
_TIMEOUT = 50.0
_RETRY_AFTER = 5

_BACKSLASH = ord("\\")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


@dataclass
class _Waiting:
    user: str
    size: int
    admitted: asyncio.Future[None] = field(default_factory=asyncio.Future)


class BodyGate:
    """Hands out bytes of a memory budget, first come, first served. For the event loop's thread.

    Args:
        total: the budget in bytes. A single larger request is admitted alone.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._by_user: Counter[str] = Counter()
        self._waiting: deque[_Waiting] = deque()

    @asynccontextmanager
    async def hold(self, user: str, size: int, timeout: float) -> AsyncIterator[None]:
        """Wait for `size` bytes, and give them back at the end.

        Args:
            user: id of the user who sent the body.
            size: bytes.
            timeout: longest wait in seconds.

        Raises:
            ServiceError: 503, the bytes were not free within `timeout`.
        """
        waiting = _Waiting(user, size)
        self._waiting.append(waiting)
        self._admit()
        try:
            await asyncio.wait_for(asyncio.shield(waiting.admitted), timeout)
        except BaseException as error:
            if waiting.admitted.done():
                self._give_back(waiting)
            else:
                self._waiting.remove(waiting)
                self._admit()
            if isinstance(error, TimeoutError):
                raise _busy("too many large requests are being handled") from error
            raise
        try:
            yield
        finally:
            self._give_back(waiting)

    def _give_back(self, waiting: _Waiting) -> None:
        self._held -= waiting.size
        self._by_user[waiting.user] -= waiting.size
        if not self._by_user[waiting.user]:
            del self._by_user[waiting.user]
        self._admit()

    def _admit(self) -> None:
        for waiting in list(self._waiting):
            theirs = self._by_user[waiting.user]
            if theirs and theirs + waiting.size > self._total // 2:
                continue  # this user has their share: requests of other users may overtake
            if self._held and self._held + waiting.size > self._total:
                return
            self._waiting.remove(waiting)
            self._held += waiting.size
            self._by_user[waiting.user] += waiting.size
            waiting.admitted.set_result(None)


@dataclass
class _ArrivingMemory:
    """Memory for all bodies that arrive, beyond `SMALL_BYTES` of each."""

    free: int


class _Spool:
    """Receives a body into memory, or into a temporary file once it is too large for that.

    Args:
        arriving: memory that all spools share.
    """

    def __init__(self, arriving: _ArrivingMemory) -> None:
        self._arriving = arriving
        self._taken = 0
        self._pieces: list[bytes | bytearray] = []
        self._file: IO[bytes] | None = None
        self.size = 0

    @property
    def in_file(self) -> int:
        """Number of bytes that are in a file."""
        return self.size if self._file is not None else 0

    def _take_memory(self) -> bool:
        """Take memory for what has arrived; return whether there is enough."""
        more = max(0, self.size - SMALL_BYTES) - self._taken
        if self.size > MEDIUM_BYTES or more > self._arriving.free:
            return False
        self._taken += more
        self._arriving.free -= more
        return True

    def _give_memory_back(self) -> None:
        self._pieces.clear()
        self._arriving.free += self._taken
        self._taken = 0

    def append(self, data: bytes) -> None:
        """Append received bytes.

        Raises:
            OSError: the temporary file can't be written.
        """
        self.size += len(data)
        if self._file is None and not self._take_memory():
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
            for piece in self._pieces:
                self._write(piece)
            self._give_memory_back()
        if self._file is None:
            self._keep(data)
        else:
            self._write(data)

    def _keep(self, data: bytes) -> None:
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, bytearray) and len(last) < _PIECE_BYTES:
            last += data
        else:
            self._pieces.append(bytearray(data) if len(data) < _PIECE_BYTES else data)

    def _write(self, data: bytes | bytearray) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def read(self) -> bytes:
        """Return the complete body, once.

        Raises:
            ServiceError: 413, it is JSON with too many values.
        """
        if self._file is None:
            whole = b"".join(self._pieces)
            self._give_memory_back()
        else:
            self._file.seek(0)
            whole = self._file.read()
        _check_structure(whole)
        return whole

    def close(self) -> None:
        """Delete the temporary file, and give memory back."""
        self._give_memory_back()
        if self._file is not None:
            self._file.close()


class Bodies:
    """Middleware that passes complete bodies to the application.

    Args:
        app: the application.
        handled: maximum bytes of bodies that the application handles at a time.
        timeout: seconds that a body waits for its share of them.
    """

    def __init__(
        self, app: ASGIApp, handled: int = HANDLED_BYTES, timeout: float = _TIMEOUT
    ) -> None:
        self._app = app
        self._timeout = timeout
        self._gate = BodyGate(handled)
        self._in_files: Counter[str] = Counter()
        self._arriving = _ArrivingMemory(ARRIVING_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        user = caller_id(scope)
        spool = _Spool(self._arriving)
        try:
            await self._take_in(spool, user, receive)
            if spool.size <= SMALL_BYTES:
                await self._app(scope, _replayed(spool.read(), receive), send)
                return
            async with self._gate.hold(user, spool.size, self._timeout):
                body = await to_thread.run_sync(spool.read) if spool.in_file else spool.read()
                await self._app(scope, _replayed(body, receive), send)
        except ServiceError as error:
            await error_answer(error)(scope, receive, send)
        finally:
            self._in_files[user] -= spool.in_file
            if not self._in_files[user]:
                del self._in_files[user]
            spool.close()

    async def _take_in(self, spool: _Spool, user: str, receive: Receive) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientDisconnect
            before = spool.in_file
            try:
                spool.append(message.get("body", b""))
            except OSError as error:
                raise _busy(f"the service can't keep large requests: {error.strerror}") from error
            finally:
                self._in_files[user] += spool.in_file - before
            if self._in_files[user] > USER_WAITING_BYTES or (
                self._in_files.total() > WAITING_BYTES
            ):
                raise _busy("too many large requests are being received")
            more = message.get("more_body", False)


def _busy(what: str) -> ServiceError:
    return ServiceError(
        f"{what}: try again in {_RETRY_AFTER} s",
        http_status=503,
        code="SERVICE_BUSY",
        retry_after=_RETRY_AFTER,
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first yields the complete body, then what `receive` yields."""
    left: list[bytes] = [body]

    async def replayed() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return replayed


def _end_of_string(body: bytes, start: int) -> int:
    """Return the position after the JSON string that begins at `start`."""
    end = body.find(b'"', start + 1)
    # A string of megabytes mostly has no quote before its end; `find` is a hundred times as fast
    # as the expression, which is needed if the quote may be escaped.
    if end < 0 or body[end - 1] != _BACKSLASH:
        return len(body) if end < 0 else end + 1
    string = _STRING.match(body, start)
    assert string is not None
    return string.end()


def _check_structure(body: bytes) -> None:
    """Refuse a body that would become too many objects.

    One byte outside of JSON strings may become a value of 50 bytes in memory, or a validation error
    of 500 bytes.

    Raises:
        ServiceError: 413, the body has too many values.
    """
    if len(body) <= STRUCTURE_BYTES:
        return
    structure = end_of_last = 0
    while structure <= STRUCTURE_BYTES and (start := body.find(b'"', end_of_last)) >= 0:
        structure += start - end_of_last + 1
        end_of_last = _end_of_string(body, start)
    if structure + len(body) - end_of_last > STRUCTURE_BYTES:
        raise ServiceError(
            f"the request body has more than {STRUCTURE_BYTES} values or bytes outside of strings: "
            "send fewer values at once",
            http_status=413,
            code="REQUEST_TOO_LARGE",
            field="body",
        )
