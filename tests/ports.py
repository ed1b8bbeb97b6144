"""Reserves free ports for programs that will listen on them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a TCP port of the loopback interface that nothing listens on.

    Meanwhile, the kernel does not give this port to programs that ask for any free port, e.g. tests
    in other processes. A program that asks for this port with SO_REUSEADDR, as servers do, gets it.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        port: int = reservation.getsockname()[1]
        yield port
