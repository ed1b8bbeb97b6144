"""Bodies of requests: taken in at any speed without memory, then handled as memory allows.

A body that is not small goes to a temporary file as it comes in. Once it is whole, it waits for its
share of the memory that all bodies have together, and only then is read and parsed. So slow senders
hold no memory, many large requests are handled one after the other, and none keeps a small one
waiting.
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

#: Bodies up to this many bytes are handled at once, from memory.
SMALL_BYTES = 64 * 2**10

#: Bytes that the bodies of all requests that are handled at a time may have; what becomes of them
#: takes a few times as much. One user has half of it.
HANDLED_BYTES = 2 * MAX_REQUEST_BYTES

#: Bytes of bodies in temporary files, in all and of one user.
WAITING_BYTES = 16 * MAX_REQUEST_BYTES
USER_WAITING_BYTES = 4 * MAX_REQUEST_BYTES

#: Most strings of a JSON body, and bytes outside of them: each may become an object.
STRUCTURE_BYTES = 512 * 2**10

# Seconds that a whole body waits for its share of memory; nginx waits for an answer twice as long.
_PATIENCE = 50.0
_RETRY_AFTER = 5

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


@dataclass
class _Waiting:
    user: str
    size: int
    admitted: asyncio.Future[None] = field(default_factory=asyncio.Future)


class Gate:
    """Shares out bytes of memory in the order in which they are asked for.

    It belongs to the event loop's thread.

    Args:
        total: bytes for all; a single larger request gets in alone.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._by_user: Counter[str] = Counter()
        self._waiting: deque[_Waiting] = deque()

    @asynccontextmanager
    async def hold(self, user: str, size: int, timeout: float) -> AsyncIterator[None]:
        """Wait for `size` bytes, and give them back at the end.

        Raises:
            ServiceError: 503, others have had them for `timeout` seconds.
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
                continue  # others of theirs come first; other users' may overtake
            if self._held and self._held + waiting.size > self._total:
                return
            self._waiting.remove(waiting)
            self._held += waiting.size
            self._by_user[waiting.user] += waiting.size
            waiting.admitted.set_result(None)


class _Spool:
    """A body on its way into memory, or into a temporary file once it is not small."""

    def __init__(self) -> None:
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self.size = 0

    @property
    def in_file(self) -> int:
        """Bytes that are in a file."""
        return self.size if self._file is not None else 0

    def append(self, data: bytes) -> None:
        """Take more of it."""
        self.size += len(data)
        if self._file is None and self.size > SMALL_BYTES:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
            self._write(bytes(self._memory))
            self._memory.clear()
        if self._file is None:
            self._memory += data
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def read(self) -> bytes:
        """Return the whole of it.

        Raises:
            ServiceError: 413, it is JSON of too many values.
        """
        if self._file is None:
            whole = bytes(self._memory)
        else:
            self._file.seek(0)
            whole = self._file.read()
        _check_structure(whole)
        return whole

    def close(self) -> None:
        """Give up the file."""
        if self._file is not None:
            self._file.close()


class Bodies:
    """Hands whole bodies to the application.

    Args:
        app: the application.
        handled: bytes of bodies that it handles at a time.
        patience: seconds that a body waits for these.
    """

    def __init__(
        self, app: ASGIApp, handled: int = HANDLED_BYTES, patience: float = _PATIENCE
    ) -> None:
        self._app = app
        self._patience = patience
        self._gate = Gate(handled)
        self._in_files: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        user = caller_id(scope)
        spool = _Spool()
        try:
            await self._take_in(spool, user, receive)
            if spool.size <= SMALL_BYTES:
                await self._app(scope, _replayed(spool.read(), receive), send)
                return
            async with self._gate.hold(user, spool.size, self._patience):
                body = await to_thread.run_sync(spool.read)
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
                raise _busy("too many large requests are on their way")
            more = message.get("more_body", False)


def _busy(what: str) -> ServiceError:
    return ServiceError(
        f"{what}: try again in {_RETRY_AFTER} s",
        http_status=503,
        code="SERVICE_BUSY",
        retry_after=_RETRY_AFTER,
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return what gives the application a whole body, and then what else comes."""
    left: list[bytes] = [body]

    async def replayed() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return replayed


def _check_structure(body: bytes) -> None:
    """Refuse a body that would become too many objects.

    A byte outside of a JSON text's strings may stand for a value of 50 bytes, or for an error with
    its place of 500.
    """
    if len(body) <= STRUCTURE_BYTES:
        return
    structure = end_of_last = 0
    for string in _STRING.finditer(body):
        structure += string.start() - end_of_last + 1
        end_of_last = string.end()
        if structure > STRUCTURE_BYTES:
            break
    if structure + len(body) - end_of_last > STRUCTURE_BYTES:
        raise ServiceError(
            f"the request body has more than {STRUCTURE_BYTES} values or bytes outside of strings: "
            "send fewer values at once",
            http_status=413,
            code="REQUEST_TOO_LARGE",
            field="body",
        )
