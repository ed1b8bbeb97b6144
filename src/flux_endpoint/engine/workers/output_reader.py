"""A manager's side of its workers' output: each task's goes with its end, all of it to the log.

Who reads a worker's pipes when is in `pipes`.
"""

from __future__ import annotations

import math
import os
import select
import struct
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl, ioctl
from typing import Any

from flux_endpoint.engine.output import LogAllowance
from flux_endpoint.engine.results import output_details
from flux_endpoint.engine.tail import StreamTail
from flux_endpoint.engine.workers.pipes import MOST_READ, WorkerPipes, read_all

#: Seconds that output waits in its pipe: short tasks end within them, and each line of a longer one
#: would otherwise wake this process. A pipe with much in it is read sooner.
_PAUSE = 0.02
_SHORT_PAUSE = 0.001
_MUCH = 32 << 10


class WorkerOutput:
    """The pipes of one worker, and the output of its present task as far as it was read here.

    Args:
        pipes: the pipes; their ends for writing are others'.
        most: the most bytes of each stream that are kept.
    """

    def __init__(self, pipes: WorkerPipes, most: int) -> None:
        self._pipes = pipes
        self._most = most
        self._tails = self._new_tails()
        self._is_wide = False
        #: Whether this process is the reader, until it has seen the next marks.
        self.is_reader = False
        #: When the pipes are read next, in monotonic time.
        self.due = math.inf

    def _new_tails(self) -> tuple[StreamTail, StreamTail]:
        return StreamTail(self._most), StreamTail(self._most)

    @property
    def readers(self) -> tuple[int, int]:
        """The descriptors to poll."""
        return self._pipes.readers

    @property
    def has_some(self) -> bool:
        """Whether there is something to read."""
        return any(map(_waiting_in, self.readers))

    def has_much(self) -> bool:
        """Return whether a pipe is half full: what prints may soon have to wait. Widen it then."""
        full = [reader for reader in self.readers if _waiting_in(reader) >= _MUCH]
        if full and not self._is_wide:
            self._is_wide = True
            for reader in self.readers:
                with suppress(OSError):  # the user has as many large pipes as permitted
                    fcntl(reader, F_SETPIPE_SZ, MOST_READ)
        return bool(full)

    def become_reader(self) -> bool:
        """Take the token; return False if the worker is reading, or has ended its task."""
        if not self.is_reader:
            with suppress(OSError):
                os.eventfd_read(self._pipes.token)
                self.is_reader = True
        return self.is_reader

    def give_up(self) -> None:
        """Return the token, and forget what was read: it is no task's, or was taken."""
        if self.is_reader:
            self.is_reader = False
            os.eventfd_write(self._pipes.token, 1)
        self._tails = self._new_tails()

    def read(self) -> bytes:
        """Read both pipes; return what was in them."""
        streams = [read_all(reader) for reader in self.readers]
        self._add(streams)
        return b"".join(streams)

    def read_to(self, mark: bytes) -> bytes:
        """Read both pipes up to a mark, as far as it is there; return what precedes it."""
        streams = []
        for reader in self.readers:
            data = read_all(reader)
            # After the mark is what processes that the task has left have printed since.
            streams.append(data.replace(mark, b"", 1) if mark else data)
        self._add(streams)
        return b"".join(streams)

    def _add(self, streams: Iterable[bytes]) -> None:
        for tail, data in zip(self._tails, streams, strict=True):
            if data:
                tail.add(data)

    def take(self) -> dict[str, Any]:
        """Return what the present task has printed, as entries of its result's details."""
        details = output_details(self._tails)
        self._tails = self._new_tails()
        return details

    def sent(self, streams: Iterable[bytes]) -> dict[str, Any]:
        """Return the same of a task whose worker has read and sent it."""
        tails = self._new_tails()
        for tail, data in zip(tails, streams, strict=True):
            tail.add(data)
        return output_details(tails)

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in (*self.readers, self._pipes.token):
            os.close(descriptor)


def _waiting_in(reader: int) -> int:
    """Return the number of bytes in a pipe."""
    (count,) = struct.unpack("i", ioctl(reader, termios.FIONREAD, bytes(4)))
    return int(count)


class OutputReader:
    """Reads the output of a node's workers.

    Args:
        most: the most bytes of each stream of a task that are kept.
        log: called with output for the log.
    """

    def __init__(self, most: int, log: Callable[[bytes], None]) -> None:
        self._most = most
        self._log = log
        self._allowance = LogAllowance()
        self._epoll = select.epoll()
        self._outputs: dict[int, WorkerOutput] = {}
        #: Those of them that have a time at which they are due.
        self._due: set[WorkerOutput] = set()

    def fileno(self) -> int:
        """Return the descriptor to poll; then call `serve`."""
        return self._epoll.fileno()

    def add(self, pipes: WorkerPipes) -> WorkerOutput:
        """Read the output of another worker from now on."""
        output = WorkerOutput(pipes, self._most)
        for reader in output.readers:
            self._outputs[reader] = output
            self._epoll.register(reader, select.EPOLLIN | select.EPOLLONESHOT)
        return output

    def serve(self) -> None:
        """Note which workers have printed, and when that is to be read."""
        for reader, _ in self._epoll.poll(0):
            output = self._outputs[reader]
            pause = _SHORT_PAUSE if output.has_much() else _PAUSE
            output.due = min(output.due, time.monotonic() + pause)
            self._due.add(output)

    def moments(self) -> Iterator[float]:
        """Yield the monotonic times at which output is due to be read."""
        for output in self._due:
            yield output.due

    def read_due(self) -> list[WorkerOutput]:
        """Read what is due, except where the worker does; return the outputs that were read."""
        now = time.monotonic()
        read = []
        for output in [each for each in self._due if each.due <= now]:
            self._due.discard(output)
            output.due = math.inf
            if output.has_some and output.become_reader():
                self.write(output.read())
                read.append(output)
            for reader in output.readers:
                self._epoll.modify(reader, select.EPOLLIN | select.EPOLLONESHOT)
        return read

    def ended(
        self, output: WorkerOutput, mark: bytes | None, streams: tuple[bytes, bytes]
    ) -> dict[str, Any]:
        """Return what a task has printed that its worker reports as ended.

        Args:
            output: the worker's.
            mark: the mark up to which this process has to read; `None`: the worker has read.
            streams: what the worker has read.
        """
        if mark is None:
            # If this process is the reader, then of what the worker's next task prints.
            self.write(b"".join(streams))
            return output.sent(streams) if any(streams) else {}
        self.write(output.read_to(mark))
        details = output.take()
        output.give_up()
        return details

    def lost(self, output: WorkerOutput) -> dict[str, Any]:
        """Return what a worker that has exited has printed since its last report."""
        self.write(output.read())
        self._due.discard(output)
        for reader in output.readers:
            del self._outputs[reader]
            self._epoll.unregister(reader)
        output.close()
        return output.take()

    def write(self, data: bytes) -> None:
        """Send output to the log, within limits."""
        if data:
            self._log(self._allowance.cut(data))

    def close(self) -> None:
        """Send the last output to the log; the workers have ended."""
        for output in set(self._outputs.values()):
            self.write(output.read())
        self._log(self._allowance.note())
