"""The last lines of log files, and the lines that are added later."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

#: Seconds between checks of the files without any notification: network file systems do not report
#: changes by other machines.
RECHECK = 2.0

_BLOCK = 1 << 16
# From <sys/inotify.h>.
_IN_CLOEXEC, _IN_NONBLOCK = 0o2000000, 0o4000
_IN_MODIFY, _IN_ATTRIB, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x4, 0x80, 0x100
_IN_DELETE_SELF, _IN_MOVE_SELF = 0x400, 0x800
_OF_FILE = _IN_MODIFY | _IN_ATTRIB | _IN_DELETE_SELF | _IN_MOVE_SELF
_OF_DIRECTORY = _IN_CREATE | _IN_MOVED_TO


class Watcher:
    """Wakes when a file is written, replaced or removed: inotify(7)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        #: -1 if inotify is missing or exhausted: then only `RECHECK` is left.
        self._descriptor = self._libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        self._poll = select.poll()
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._poll.register(self._woken, select.POLLIN)
        if self._descriptor >= 0:
            self._poll.register(self._descriptor, select.POLLIN)

    def add(self, path: Path) -> None:
        """Watch a file; nothing happens if it does not exist."""
        self._add(path, _OF_FILE)

    def add_directory(self, path: Path) -> None:
        """Watch a directory for files that are created there or moved into it."""
        self._add(path, _OF_DIRECTORY)

    def watch_reader(self, descriptor: int) -> None:
        """Also wake when a pipe that we write to has no readers any more."""
        self._poll.register(descriptor, 0)

    def wait(self) -> None:
        """Wait until something may have changed.

        Raises:
            BrokenPipeError: the output has no readers any more.
        """
        for descriptor, _ in self._poll.poll(RECHECK * 1000):
            if descriptor not in (self._descriptor, self._woken):
                raise BrokenPipeError
            with contextlib.suppress(BlockingIOError):
                os.read(descriptor, _BLOCK)

    def wake(self) -> None:
        """End the present wait, or the next one. From any thread."""
        with self._lock:
            if self._woken >= 0:
                os.eventfd_write(self._woken, 1)

    def close(self) -> None:
        """Close the descriptors."""
        with self._lock:
            os.close(self._woken)
            self._woken = -1
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _add(self, path: Path, mask: int) -> None:
        if self._descriptor >= 0:
            self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask)


class FollowedFile:
    """A log file: its last lines, then new lines, even after the file is replaced.

    Args:
        path: the file; it need not exist yet.
        watcher: gets the paths to watch.
    """

    def __init__(self, path: Path, watcher: Watcher) -> None:
        self._path = path
        self._watcher = watcher
        self._descriptor = -1
        self._rest = b""
        watcher.add_directory(path.parent)

    def last_lines(self, count: int) -> list[str]:
        """Return the last `count` lines; `new_lines` continues after them."""
        self._open()
        if self._descriptor < 0:
            return []
        end = os.fstat(self._descriptor).st_size
        start, newlines = end, 0
        while start > 0 and newlines <= count:
            size = min(_BLOCK, start)
            start -= size
            newlines += os.pread(self._descriptor, size, start).count(b"\n")
        os.lseek(self._descriptor, start, os.SEEK_SET)
        lines = self._read(end - start)
        wanted = count - bool(self._rest)  # an incomplete last line counts, too
        return lines[-wanted:] if wanted > 0 else []

    def rest(self) -> list[str]:
        """Return an incomplete last line, if there is one."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []

    def new_lines(self) -> list[str]:
        """Return the lines since the last call; an incomplete line comes once it is complete."""
        lines = self._drain()
        while self._was_replaced():
            lines += self._drain()  # written between the last read and the replacement
            lines += self.rest()
            self.close()
            self._open()
            lines += self._drain()
        return lines

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self._path))
        with contextlib.suppress(FileNotFoundError):
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._watcher.add(self._path)

    def _was_replaced(self) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        if self._descriptor < 0:
            return True
        ours = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _drain(self) -> list[str]:
        if self._descriptor < 0:
            return []
        size = os.fstat(self._descriptor).st_size
        if size < os.lseek(self._descriptor, 0, os.SEEK_CUR):  # it was truncated
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            self._rest = b""
        return self._read()

    def _read(self, limit: int | None = None) -> list[str]:
        pieces = [self._rest]
        left = limit
        while left is None or left > 0:
            piece = os.read(self._descriptor, _BLOCK if left is None else min(_BLOCK, left))
            if not piece:
                break
            pieces.append(piece)
            left = None if left is None else left - len(piece)
        *lines, self._rest = b"".join(pieces).split(b"\n")
        return [_text(line) for line in lines]


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def follow(
    files: Sequence[FollowedFile], watcher: Watcher, is_over: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, str]]:
    """Yield each new line with the index of its file in `files`.

    Args:
        files: the files.
        watcher: watches them.
        is_over: whether nothing more is written: then this ends with the last lines.

    Raises:
        BrokenPipeError: the output has no readers any more.
    """
    while True:
        over = is_over()  # asked first: the lines before the end are there then
        for number, file in enumerate(files):
            lines = file.new_lines()
            for line in [*lines, *file.rest()] if over else lines:
                yield number, line
        if over:
            return
        watcher.wait()
