"""The files that a task's processes write their output to, read while they run and at the end."""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flux_endpoint.engine.tail import MOST_OF_PART, StreamTail, complete_characters, from_line
from flux_endpoint.protocol.envelope import OUTPUT

#: Seconds between two looks at the files of a followed task.
LOOK_PAUSE = 0.2
#: The most tasks of a process whose files are followed.
MOST_FOLLOWED = 64
#: The most bytes that one look at all of them reports; the rest waits for the next look.
_MOST_OF_LOOK = 1 << 20

#: A part of each stream: the positions of its first byte and after its last one, and its text.
Parts = dict[str, tuple[int, int, str]]


@dataclass
class WrittenOutput:
    """The files of a task's standard output and error.

    Attributes:
        paths: the two files.
        starts: their sizes in bytes before the task; positions in its output count from there.
        was_followed: whether somebody has followed them, or may have before a restart. The end of
            the task then comes with the positions of its output, so that a follower can tell what
            is new in it.
        is_open: whether the task may write to them by now.
    """

    paths: tuple[Path, Path]
    starts: tuple[int, int] = (0, 0)
    was_followed: bool = False
    is_open: bool = True

    def tails(self, most: int) -> Iterator[StreamTail]:
        """Yield the ends of both streams, with at most `most` bytes each."""
        for path, start in zip(self.paths, self.starts, strict=True):
            tail = StreamTail(most)
            with suppress(OSError, ValueError), _opened(path) as (descriptor, size):
                # One more byte, so that the tail knows that there is more.
                begin = max(min(start, size), size - most - 1)
                tail.dropped = max(0, begin - start)
                tail.add(os.pread(descriptor, size - begin, begin))
            yield tail

    def parts(self, sent: list[int], most: int) -> Parts:
        """Return what was written after the positions in `sent`, which are advanced.

        Args:
            sent: a position in each stream.
            most: the bytes at the end of each stream beyond which others are left out. Of these,
                the first `MOST_OF_PART` are returned.
        """
        found: Parts = {}
        for number, (name, _) in enumerate(OUTPUT):
            with suppress(OSError, ValueError), _opened(self.paths[number]) as (descriptor, size):
                written = size - self.starts[number]
                # Less than was sent is another attempt's: all of it is new.
                position = sent[number] if sent[number] <= written else 0
                begin = max(position, written - most)
                if begin >= written:
                    continue
                count = min(written - begin, MOST_OF_PART)
                data = os.pread(descriptor, count, self.starts[number] + begin)
                if begin > position:  # not in the middle of a line
                    whole = from_line(data)
                    begin, data = begin + len(data) - len(whole), whole
                if data := complete_characters(data):
                    sent[number] = begin + len(data)
                    found[name] = begin, sent[number], data.decode(errors="backslashreplace")
        return found


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """Open a file and yield its descriptor and size.

    It is opened anew for each look: a network file system asks its server for the size only then.

    Raises:
        OSError: it can't be read, or is not a regular file.
        ValueError: there is no such path: tasks may name one.
    """
    # Opening a named pipe must not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


@dataclass(eq=False)
class _Followed:
    """A task whose files somebody follows, until a monotonic time."""

    output: WrittenOutput
    until: float
    #: Bytes of both streams that were reported.
    sent: list[int]


class FollowedFiles:
    """The followed tasks whose output goes to files. For one thread.

    Their files are looked at five times a second, only while somebody follows them and their tasks
    run. A watch (inotify) would not see what other nodes write to a shared file system.

    Args:
        most: the most bytes of each stream of a task that are reported at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._followed: dict[str, _Followed] = {}
        self._looked_at = -math.inf

    def follow(
        self, task_id: str, output: WrittenOutput, seconds: float, known: tuple[int, int]
    ) -> None:
        """Follow a task for `seconds`; `known` has the bytes of both streams that were reported."""
        now = time.monotonic()
        for each in [each for each, its in self._followed.items() if its.until < now]:
            del self._followed[each]  # no look removes it while no followed task may write
        if self._most and (task_id in self._followed or len(self._followed) < MOST_FOLLOWED):
            self._followed[task_id] = _Followed(output, now + seconds, list(known))

    def forget(self, task_id: str) -> None:
        """Follow a task no longer: it has ended."""
        self._followed.pop(task_id, None)

    @property
    def due(self) -> float:
        """The monotonic time of the next look; infinity: there is nothing to look at."""
        if not any(each.output.is_open for each in self._followed.values()):
            return math.inf
        return self._looked_at + LOOK_PAUSE

    def look(self) -> list[tuple[str, Parts]]:
        """Return what tasks have written since the last look, if one is due."""
        now = time.monotonic()
        if now < self.due:
            return []
        self._looked_at = now
        found, left = [], _MOST_OF_LOOK
        for task_id, each in list(self._followed.items()):
            if each.until < now:
                del self._followed[task_id]
                continue
            if not each.output.is_open or left <= 0:
                continue
            if parts := each.output.parts(each.sent, self._most):
                found.append((task_id, parts))
                left -= sum(end - begin for begin, end, _ in parts.values())
                # The next look begins with the others: all get their turn.
                self._followed[task_id] = self._followed.pop(task_id)
        return found
