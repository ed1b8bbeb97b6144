"""This process and its children: prctl(2), signals, and the end of all descendants."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resource import struct_rusage

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int | bytes) -> None:
    """Set a property of this process.

    Raises:
        OSError: the kernel refuses it; see prctl in section 2 of the manual.
    """
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def children() -> list[int]:
    """Return the pids of this single-threaded process's children, zombies included."""
    me = os.getpid()
    with contextlib.suppress(FileNotFoundError):
        return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    found = []  # a kernel without CONFIG_PROC_CHILDREN
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry.name}/stat").read_bytes()
                if int(stat[stat.rindex(b")") + 2 :].split()[1]) == me:
                    found.append(int(entry.name))
    return found


def end_children(keep: frozenset[int] = frozenset()) -> None:
    """Kill and reap every descendant except the children in `keep`.

    Only direct children are signalled: until they are reaped, their pids are not reused. The kernel
    gives a subreaper the orphans of those that die, so the next round reaches these, including
    daemons and new sessions.
    """
    while victims := [pid for pid in children() if pid not in keep]:
        for pid in victims:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in victims:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def wakeup_socket() -> socket.socket:
    """Return a socket that becomes readable at SIGCHLD and SIGTERM, and yields their numbers."""
    readable, writable = socket.socketpair()
    readable.setblocking(False)
    writable.setblocking(False)
    signal.set_wakeup_fd(writable.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return readable


def reap() -> Iterator[tuple[int, int, struct_rusage]]:
    """Reap the children that have ended; yield the pid, wait status and usage of each."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.wait4(-1, os.WNOHANG))[0]:
            yield ended


def drain(sock: socket.socket) -> bytes:
    """Return the signals that have arrived at a wake-up socket."""
    with contextlib.suppress(BlockingIOError):
        return sock.recv(4096)
    return b""
