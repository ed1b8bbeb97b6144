"""Readiness of a child process by the sd_notify protocol, without systemd."""

from __future__ import annotations

import os
import secrets
import socket

_ENDED = b"\0ended"


class NotifySocket:
    """A socket to which a child sends `READY=1`; NOTIFY_SOCKET has its address.

    The address is abstract, so it needs no file, and long paths are no problem.
    """

    def __init__(self) -> None:
        name = f"flux-endpoint-{os.getpid()}-{secrets.token_hex(8)}"
        self.address = f"@{name}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name}")

    def tell_ended(self) -> None:
        """Wake `wait_ready`, because the child has ended. Any thread."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(_ENDED, f"\0{self.address[1:]}")

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the child is ready; return false if it has ended.

        Args:
            timeout: the longest time without a message from the child, in seconds; `None`: no
                limit.

        Raises:
            TimeoutError: no message came for `timeout` seconds.
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
