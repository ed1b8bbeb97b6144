"""The messages between pool, manager and worker, as frames; and the counter of claims.

Between pool and manager frames are ZeroMQ's; `combined` has what each costs.

Between manager and worker a frame is a 4-byte and an 8-byte big-endian length, then a JSON header
and a body of these lengths. A nonblocking reader does not trust its peer: invalid or oversized
frames raise an error at once.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from flux_endpoint.protocol.envelope import compact_json, read_compact_json
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES

#: Header and buffer of a task.
Task = tuple[dict[str, Any], bytes]

#: The two lengths in bytes.
LENGTHS = struct.Struct("!IQ")
_CHUNK = 1 << 18
#: Maximum sizes of a header and a body. JSON needs at most six bytes for one byte of a value.
MAX_HEADER = 1 << 16
MAX_BODY = 6 * MAX_PAYLOAD_BYTES + (1 << 20)


class _Room(threading.local):
    """Where a thread receives data: `recv` would request a chunk of new memory each time."""

    def __init__(self) -> None:
        self.chunk = memoryview(bytearray(_CHUNK))


_room = _Room()


class NoFrameError(EOFError):
    """The peer has sent something that is not a frame: the rest can't be read."""


class FrameSocket:
    """Sends and receives frames on a socket without blocking.

    Args:
        sock: a stream socket; it becomes nonblocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._incoming = bytearray()
        self._outgoing: deque[memoryview] = deque()
        #: Small frames after these.
        self._small = bytearray()

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether unsent data waits for the socket to become writable."""
        return bool(self._outgoing or self._small)

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Queue a frame and write as much as possible. A closed peer is reported by `receive`."""
        self.put(header, body)
        self.flush()

    def put(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Queue a frame for the next `flush`. Small ones are written together."""
        text = compact_json(header)
        self._small += LENGTHS.pack(len(text), len(body)) + text
        if len(body) < _CHUNK:
            self._small += body
        else:
            self._end_small()
            self._outgoing.append(memoryview(body))

    def _end_small(self) -> None:
        if self._small:
            self._outgoing.append(memoryview(self._small))
            self._small = bytearray()

    def flush(self) -> None:
        """Write as much queued data as the socket accepts."""
        self._end_small()
        while self._outgoing:
            part = self._outgoing[0]
            try:
                sent = self._socket.send(part)
            except BlockingIOError:
                return
            except OSError:  # the peer is gone: nobody will read this
                self._outgoing.clear()
                return
            if sent == len(part):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = part[sent:]

    def receive(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield the frames that have arrived.

        Raises:
            NoFrameError: the peer has sent something that is not a frame.
            EOFError: the peer has closed its end. All complete frames were yielded before.
        """
        closed = False
        while True:
            try:
                count = self._socket.recv_into(_room.chunk)
            except BlockingIOError:
                break
            except OSError:
                count = 0
            if not count:
                closed = True
                break
            self._incoming += _room.chunk[:count]
            if count < _CHUNK:
                break
        yield from self._frames()
        if closed:
            raise EOFError

    def _frames(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        start = 0
        data = self._incoming
        while len(data) - start >= LENGTHS.size:
            header_length, body_length = LENGTHS.unpack_from(data, start)
            if header_length > MAX_HEADER or body_length > MAX_BODY:
                raise NoFrameError
            header_at = start + LENGTHS.size
            body_at = header_at + header_length
            end = body_at + body_length
            if len(data) < end:
                break
            yield _header(data[header_at:body_at]), _copied(data, body_at, end)
            start = end
        del data[:start]

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class FrameReader:
    """Reads frames from a blocking socket, with one system call for all that have arrived.

    Args:
        sock: the socket, which nobody else reads from.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._data = bytearray()

    @property
    def has_data(self) -> bool:
        """Whether a frame, or a part of one, was received and not returned yet."""
        return bool(self._data)

    def read(self) -> tuple[dict[str, Any], bytes] | None:
        """Return the next frame; `None` at the end of the stream.

        Raises:
            NoFrameError: the data is not a frame.
        """
        data = self._data
        while len(data) < LENGTHS.size or len(data) < (end := _end_of_frame(data)):
            count = self._socket.recv_into(_room.chunk)
            if not count:
                return None
            data += _room.chunk[:count]
        body_at = LENGTHS.size + LENGTHS.unpack_from(data)[0]
        frame = _header(data[LENGTHS.size : body_at]), _copied(data, body_at, end)
        del data[:end]
        return frame


def _end_of_frame(data: bytearray) -> int:
    header_length, body_length = LENGTHS.unpack_from(data)
    return LENGTHS.size + int(header_length) + int(body_length)


def _copied(data: bytearray, start: int, end: int) -> bytes:
    with (
        memoryview(data) as view,
        view[start:end] as part,
    ):  # a slice of `data` would be a copy, too
        return bytes(part)


def _header(text: bytearray) -> dict[str, Any]:
    try:
        header = read_compact_json(text.decode())
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise NoFrameError
    return header


def write_frame(sock: socket.socket, header: dict[str, Any], body: bytes = b"") -> None:
    """Write one frame to a blocking socket."""
    text = compact_json(header)
    head = LENGTHS.pack(len(text), len(body)) + text
    if len(body) < _CHUNK:
        sock.sendall(head + body)
    else:
        sock.sendall(head)
        sock.sendall(body)


#: Parts of at least this size (bytes) are not copied together with others.
_LARGE_PART = 1 << 16


def combined(parts: Iterable[bytes]) -> tuple[list[int], list[bytes]]:
    """Return the sizes of `parts`, and frames with all of them in order.

    Each frame of a ZeroMQ message costs both sides a few microseconds of Python, and two changes of
    the interpreter's lock. So small parts share one.
    """
    sizes: list[int] = []
    frames: list[bytes] = []
    small: list[bytes] = []
    for part in parts:
        sizes.append(len(part))
        if len(part) < _LARGE_PART:
            small.append(part)
        else:
            frames += [b"".join(small), part]
            small = []
    return sizes, [*frames, b"".join(small)]


def divided(sizes: Iterable[int], frames: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the parts that `combined` put into frames.

    Raises:
        ValueError: the frames have fewer bytes than that, or parts that cross their limits.
    """
    source = iter(frames)
    frame, at = b"", 0
    for size in sizes:
        while size and at == len(frame):
            following = next(source, None)
            if following is None:
                raise ValueError("the message has fewer frames than its header says")
            frame, at = following, 0
        part = frame[at : at + size]
        if len(part) < size:
            raise ValueError("a frame of the message is too short")
        at += size
        yield part


class Claims:
    """A counter shared by manager and worker: how many of the sent tasks may still start.

    The worker takes one claim before each task, and skips the task if there is none. The manager
    takes all remaining claims when it wants tasks back. The kernel makes each claim go to only one
    of them.

    Args:
        descriptor: an existing counter; by default a new one is created.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = (
            os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            if descriptor is None
            else descriptor
        )

    def fileno(self) -> int:
        """Return the descriptor, for passing it on."""
        return self._descriptor

    def add(self, count: int) -> bool:
        """Allow `count` more tasks; return False if a task has raised the counter too far."""
        try:
            os.eventfd_write(self._descriptor, count)
        except BlockingIOError:
            return False
        return True

    def take(self) -> bool:
        """Take one claim; return whether there was one."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return False
        return True

    def take_all(self, most: int) -> int:
        """Take the remaining claims, at most `most`; return their number."""
        count = 0
        while count < most and self.take():
            count += 1
        return count

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)
