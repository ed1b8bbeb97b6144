"""Lets programs that are started together wait for each other without polling."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path

#: Names a file that is locked (flock(2)) while this program must wait.
START_AFTER = "FLUX_ENDPOINT_START_AFTER"
#: Names the socket to which a program reports that it is ready: sd_notify(3).
NOTIFY_SOCKET = "NOTIFY_SOCKET"


class StartOrder:
    """The start order of this program, taken from the environment and removed there.

    So programs that this one starts do not get it.
    """

    def __init__(self) -> None:
        self._after = os.environ.pop(START_AFTER, "")
        self._notify = os.environ.pop(NOTIFY_SOCKET, "")

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a program that takes this one's place."""
        return {NOTIFY_SOCKET: self._notify} if self._notify else {}

    def wait(self) -> None:
        """Wait until the programs that this one needs are ready."""
        if not self._after:
            return
        with contextlib.suppress(FileNotFoundError):  # the whole directory was deleted
            descriptor = os.open(self._after, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            finally:
                os.close(descriptor)

    def tell_ready(self) -> None:
        """Report to the starter, if it wants to know, that this program is ready."""
        if not self._notify:
            return
        name = self._notify
        address = f"\0{name[1:]}" if name.startswith("@") else name
        with (
            contextlib.suppress(OSError),  # the starter has ended
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        ):
            sender.sendto(b"READY=1", address)


class Gate:
    """Keeps programs waiting that were started with its `environment`, until it is opened.

    It is also open when this process has ended.

    Args:
        file: the file that is locked; created if missing.

    Raises:
        OSError: it can't be created.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        self._file = file.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a program that must wait; none when the gate is open."""
        return {} if self._file.closed else {START_AFTER: str(self._path)}

    def open(self) -> None:
        """Let the waiting programs go on; again: do nothing."""
        self._file.close()
