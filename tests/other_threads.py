"""Sends a signal to a thread other than the main one; the kernel may do that at any time."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def signal_another_thread(pid: int, signum: int) -> None:
    """Send a signal to a thread that is not the main one and does not block the signal.

    Args:
        pid: the process.
        signum: number of the signal.

    Raises:
        OSError: it can't be sent.
        AssertionError: there is no such thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (task / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            continue
        status = dict(line.split(":\t", 1) for line in text.splitlines())
        blocked = int(status["SigBlk"], 16) & 1 << (signum - 1)
        if int(task.name) != pid and not blocked:
            if libc.tgkill(pid, int(task.name), signum):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return
    raise AssertionError(f"process {pid} has no thread but its main one that takes the signal")
