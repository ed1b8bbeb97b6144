"""Find and await the processes that carry a mark in their environment or command line."""

import os
import select
from pathlib import Path


def processes_of(mark):
    """Return {pid: command line} of the live processes with `mark`, this one left out."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            text = command + (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if os.fsencode(mark) in text and state != "Z":
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def await_end(pids, timeout=20):
    """Wait until all `pids` have ended; return those that have not after `timeout` seconds."""
    left = []
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(timeout * 1000):
            left.append(pid)
        os.close(pidfd)
    return left
