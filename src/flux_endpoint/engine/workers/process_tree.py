"""Signals and kills process trees, and describes wait statuses."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from itertools import count

import psutil

#: Kill timeout (s), and the least number of scans for remaining processes.
_KILL_TIMEOUT = 1.0
_LEAST_ROUNDS = 10
#: Exit code of a worker whose task has closed the connection to the manager.
CONNECTION_CLOSED = 78


def signal_tree(pid: int, signum: int, *, itself: bool = True) -> None:
    """Send a signal to all descendants of `pid`, then to `pid` unless `itself` is false."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        victims = process.children(recursive=True)
        for victim in [*victims, process] if itself else victims:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signum)


def kill_tree(pid: int) -> None:
    """Kill `pid` and all of its descendants, also those forked in the meantime."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.suspend()
        until = time.monotonic() + _KILL_TIMEOUT
        for rounds in count(1):
            children = [c for c in process.children(recursive=True) if _alive(c)]
            # A process that the kernel can't kill is left.
            if not children or (rounds > _LEAST_ROUNDS and time.monotonic() >= until):
                break
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_of(status: int) -> str:
    """Return a text that says how a worker with this wait status ended."""
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        name = signal.Signals(signum).name if signum in list(signal.Signals) else str(signum)
        hint = " (out of memory?)" if signum == signal.SIGKILL else ""
        return f"the worker process was killed by signal {signum} ({name}){hint}"
    if os.WEXITSTATUS(status) == CONNECTION_CLOSED:
        return (
            "the worker process can't tell how the task ended: the task closed a descriptor that "
            "was not its own (os.closerange?)"
        )
    return f"the worker process ended with exit code {os.WEXITSTATUS(status)} in mid-task"
