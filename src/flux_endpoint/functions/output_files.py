"""The files of a command's output streams. New ones cost as much as the start of a short command.

Most commands write nothing to one of their streams. So the empty file of a command that has ended
is renamed for the next command, unless another process may still write to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

#: Empty files of ended commands of this process.
_empty: deque[Path] = deque(maxlen=8)


@contextlib.contextmanager
def output_file(path: Path, *, may_be_renamed: bool) -> Iterator[int]:
    """Open a file for appending and reading; yield its descriptor.

    Args:
        path: the file; it is created if it does not exist, with its directory.
        may_be_renamed: whether it is this command's own, so that another one may get it if it
            remains empty.

    Raises:
        OSError: it can't be written.
    """
    descriptor = _reused(path) if may_be_renamed else None
    if descriptor is None:
        descriptor = _opened(path)
    try:
        yield descriptor
    finally:
        if may_be_renamed and os.fstat(descriptor).st_size == 0:
            _empty.append(path)
        os.close(descriptor)


def _opened(path: Path) -> int:
    # Also readable: the snippet is read from this descriptor even if the command renames the file.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o666)


def _reused(path: Path) -> int | None:
    """Rename an empty file to `path`, and open it; return `None` if there is none to use."""
    try:
        spare = _empty.pop()
    except IndexError:
        return None
    if spare.parent != path.parent:
        return None
    try:
        descriptor = os.open(spare, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # it was removed
        return None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0 and status.st_nlink == 1:
            _require_alone(descriptor)
            spare.rename(path)
            return descriptor
    except OSError:  # somebody has it open, or this file system can't tell
        pass
    os.close(descriptor)
    return None


def _require_alone(descriptor: int) -> None:
    """Raise OSError if anything but `descriptor` has its file open for writing.

    A background process of the previous command may. The kernel then grants no lease (fcntl(2)).
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, "no leases")
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # which is ignored, unlike SIGIO
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
