"""Hear from a daemon that it is ready: the sd_notify protocol, without systemd."""

from __future__ import annotations

import os
import secrets
import socket

_ENDED = b"\0ended"


class NotifySocket:
    """A socket to which a child says `READY=1`; its address goes into NOTIFY_SOCKET.

    The address is an abstract one: it needs no file and has no trouble with long paths.
    """

    def __init__(self) -> None:
        name = f"flux-endpoint-{os.getpid()}-{secrets.token_hex(8)}"
        self.address = f"@{name}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name}")

    def tell_ended(self) -> None:
        """Wake `wait_ready`: there is nobody left to wait for. Any thread."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(_ENDED, f"\0{self.address[1:]}")

    def wait_ready(self, timeout: float) -> bool:
        """Wait for at most `timeout` seconds without a word; return false if the child ended.

        Raises:
            TimeoutError: if nothing was heard for `timeout` seconds.
        """
        self._socket.settimeout(timeout)
        while True:
            message = self._socket.recv(4096)
            if message == _ENDED:
                return False
            if b"READY=1" in message.split(b"\n"):
                return True

    def close(self) -> None:
        """Close; later notifications fail at their sender."""
        self._socket.close()
