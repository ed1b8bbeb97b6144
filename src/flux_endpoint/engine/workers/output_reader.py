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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fcntl import F_SETPIPE_SZ, fcntl, ioctl
from typing import Any, Protocol

from flux_endpoint.engine.output import LogAllowance
from flux_endpoint.engine.results import output_details
from flux_endpoint.engine.tail import StreamTail
from flux_endpoint.engine.workers.pipes import MOST_READ, WorkerPipes, read_all
from flux_endpoint.engine.written_output import (
    LOOK_PAUSE,
    MOST_FOLLOWED,
    FollowedFiles,
    WrittenOutput,
)
from flux_endpoint.protocol.envelope import OUTPUT

#: Seconds that output waits in its pipe: short tasks end within them, and each line of a longer one
#: would otherwise wake this process. A pipe with much in it is read sooner.
_PAUSE = 0.02
_SHORT_PAUSE = 0.001
_MUCH = 32 << 10
#: Seconds between two reports of a followed task.
_REPORT_PAUSE = LOOK_PAUSE


class OutputListener(Protocol):
    """Callbacks for output; see `outbox.Listener`."""

    def printed(self, data: bytes) -> None:
        """Add to the log of the workers' output."""

    def followed(self, task_id: str, streams: dict[str, Any]) -> None:
        """Report parts of what a followed task prints, by stream."""


@dataclass(eq=False)
class _Followed:
    """A task whose output somebody follows. Times are monotonic."""

    until: float
    #: Bytes of both streams that were reported.
    sent: list[int]
    #: When more may be reported.
    next_at: float = 0.0
    #: The output that waits for that.
    waits: WorkerOutput | None = None


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
        #: Whether this process is the reader, until it has read the rest of a task's output.
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
            with suppress(BlockingIOError):  # a task has raised it as far as possible
                os.eventfd_write(self._pipes.token, 1)
        self._tails = self._new_tails()

    def read(self) -> bytes:
        """Read both pipes; return what was in them."""
        streams = [read_all(reader) for reader in self.readers]
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

    def parts(self, sent: list[int]) -> dict[str, tuple[int, int, str]]:
        """Return the output after the positions in `sent`, which are advanced."""
        found = {}
        for number, (tail, (name, _)) in enumerate(zip(self._tails, OUTPUT, strict=True)):
            begin, end, text = tail.part(sent[number])
            if text:
                found[name] = begin, end, text
                sent[number] = end
        return found

    def has_more(self, sent: list[int]) -> bool:
        """Return whether there is output after the positions in `sent`."""
        return any(tail.total > position for tail, position in zip(self._tails, sent, strict=True))

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
        listener: gets output for the log, and what followed tasks print.
    """

    def __init__(self, most: int, listener: OutputListener) -> None:
        self._most = most
        self._listener = listener
        self._followed: dict[str, _Followed] = {}
        self._allowance = LogAllowance()
        self._epoll = select.epoll()
        self._outputs: dict[int, WorkerOutput] = {}
        #: The files that running commands write to, by task.
        self._written: dict[str, WrittenOutput] = {}
        self._files = FollowedFiles(most)
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
        for each in self._followed.values():
            if each.waits is not None:
                yield each.next_at
        yield self._files.due

    def read_due(self) -> list[WorkerOutput]:
        """Read what is due, except where the worker does; return the outputs to report on."""
        for task_id, parts in self._files.look():
            self._listener.followed(task_id, parts)
        now = time.monotonic()
        read = []
        for each in self._followed.values():
            if each.waits is not None and each.next_at <= now:
                read.append(each.waits)
                each.waits = None
        for output in [each for each in self._due if each.due <= now]:
            self._due.discard(output)
            output.due = math.inf
            if output.has_some and output.become_reader():
                self.write(output.read())
                read.append(output)
            for reader in output.readers:
                self._epoll.modify(reader, select.EPOLLIN | select.EPOLLONESHOT)
        return read

    def writes(self, task_id: str, written: WrittenOutput) -> None:
        """Read the output of a task from its files from now on: it is a command."""
        self._written[task_id] = written
        if followed := self._followed.pop(task_id, None):
            left = followed.until - time.monotonic()
            self._follow_files(task_id, written, left, followed.sent)

    def _follow_files(
        self, task_id: str, written: WrittenOutput, seconds: float, known: Sequence[int]
    ) -> None:
        written.was_followed = True
        self._files.follow(task_id, written, seconds, (known[0], known[1]))

    def ended(
        self,
        task_id: str,
        output: WorkerOutput,
        streams: tuple[bytes, bytes] | None,
        *,
        with_files: bool = False,
    ) -> dict[str, Any]:
        """Return what a task has printed that its worker reports as ended.

        Args:
            task_id: the task.
            output: the worker's.
            streams: what the worker has read; `None`: this process is to read.
            with_files: whether to read a command's files, also if nobody has followed them.
        """
        self._followed.pop(task_id, None)
        written = self._take_written(task_id, always=with_files)
        if streams is not None:
            # If this process is the reader, then of what the worker's next task prints.
            self.write(b"".join(streams))
            return written or (output.sent(streams) if any(streams) else {})
        self.write(output.read())
        details = output.take()
        output.give_up()
        return written or details

    def _take_written(self, task_id: str, *, always: bool) -> dict[str, Any]:
        """Return what a command has written, as entries of its result's details.

        Its value has lines without positions, which is not enough for a follower.
        """
        self._files.forget(task_id)
        written = self._written.pop(task_id, None)
        if written is None or not (always or written.was_followed):
            return {}
        return output_details(written.tails(self._most))

    def belongs_to(self, task_id: str | None, output: WorkerOutput) -> None:
        """Handle that what was read is of a task, or of none: the worker has no task."""
        if task_id is None:
            output.give_up()
        elif output.is_reader:
            self.report(task_id, output)

    def follow(self, request: dict[str, Any], output: WorkerOutput | None) -> None:
        """Report what a task prints, for a while; the request is as in `messages`.

        Args:
            request: the request.
            output: that of the task's worker, if the task runs here.
        """
        if written := self._written.get(request["id"]):
            self._follow_files(request["id"], written, request["seconds"], request["known"])
            return
        now = time.monotonic()
        for task_id in [each for each, its in self._followed.items() if its.until < now]:
            del self._followed[task_id]
        if request["id"] in self._followed or len(self._followed) < MOST_FOLLOWED:
            until = now + request["seconds"]
            self._followed[request["id"]] = _Followed(until, list(request["known"]))
            if output is not None:
                self.report(request["id"], output)

    def report(self, task_id: str, output: WorkerOutput) -> None:
        """Report what a running task has printed, if somebody follows it: now, or in a moment."""
        followed, now = self._followed.get(task_id), time.monotonic()
        if followed is None or now > followed.until:
            return
        if now < followed.next_at:
            followed.waits = output
            return
        if parts := output.parts(followed.sent):
            self._listener.followed(task_id, parts)
            followed.next_at = now + _REPORT_PAUSE
            if output.has_more(followed.sent):
                followed.waits = output

    def lost(self, output: WorkerOutput, task_id: str = "") -> dict[str, Any]:
        """Return what a worker that has exited has printed since its last report.

        Args:
            output: the worker's.
            task_id: its present task; empty: it has none.
        """
        written = self._take_written(task_id, always=True)
        self.write(output.read())
        self._due.discard(output)
        for each in self._followed.values():
            if each.waits is output:
                each.waits = None
        for reader in output.readers:
            del self._outputs[reader]
            self._epoll.unregister(reader)
        output.close()
        return written or output.take()

    def write(self, data: bytes) -> None:
        """Send output to the log, within limits."""
        if data:
            self._listener.printed(self._allowance.cut(data))

    def close(self) -> None:
        """Send the last output to the log; the workers have ended."""
        for output in set(self._outputs.values()):
            self.write(output.read())
        self._listener.printed(self._allowance.note())
