"""End a process together with everything below it."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterable

import psutil

#: How often to look again for processes that were started while others were being stopped.
_ROUNDS = 50
#: Seconds between two looks: a signal takes effect when its process next leaves the kernel.
_PAUSE = 0.001
_INERT = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)
#: Seconds to wait for killed processes; one that hangs in the kernel may outlast it.
_KILL_TIMEOUT = 5.0


def end_tree(pid: int, grace: float = 0.0) -> None:
    """End the process `pid` and all its descendants; return when they have ended.

    With a `grace` they get SIGTERM and so many seconds, then SIGKILL. A process whose parent had
    died before can be found only if a living one of the tree is a child subreaper: what must never
    escape runs under a `ProcessKeeper`.

    Args:
        pid: a process; if it doesn't exist, nothing happens.
        grace: seconds between SIGTERM and SIGKILL; 0: SIGKILL at once.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        _end(root, {root}, grace)


def end_descendants(grace: float = 0.0) -> None:
    """End all descendants of this process, with the same `grace`; return when they have ended."""
    _end(psutil.Process(), set(), grace)


def _end(root: psutil.Process, members: set[psutil.Process], grace: float) -> None:
    if grace > 0:
        members |= _below([root])
        _each(members, "terminate")
        _wait(members, grace)
    members = {member for member in members if _status(member) is not None}
    _freeze(root, members)
    _each(members, "kill")
    _wait(members, _KILL_TIMEOUT)


def _freeze(root: psutil.Process, members: set[psutil.Process]) -> None:
    """Stop `members` and all below, and add these.

    A child that is started while its parent is being killed would be lost.
    """
    _each(members, "suspend")
    for _ in range(_ROUNDS):
        new = _below([root, *members]) - members
        _each(new, "suspend")
        members |= new
        if not new and all(_status(m) in (*_INERT, None) for m in members):
            return
        time.sleep(_PAUSE)


def _below(roots: Iterable[psutil.Process]) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update(root.children(recursive=True))
    return found


def _status(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.is_running():
            return str(process.status())
    return None


def _wait(processes: Iterable[psutil.Process], timeout: float) -> None:
    """Wait until all have ended, without reaping: who started them wants their exit status."""
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        poll = select.poll()
        open_descriptors = set()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(process.pid)
                stack.callback(os.close, descriptor)
                if _status(process) is not None:  # still the same process
                    poll.register(descriptor, select.POLLIN)
                    open_descriptors.add(descriptor)
        while open_descriptors and (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1000):
                poll.unregister(descriptor)
                open_descriptors.discard(descriptor)


def _each(processes: Iterable[psutil.Process], method: str) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            getattr(process, method)()
