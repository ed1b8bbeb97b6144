"""Ports that are free, and stay so for whoever is to listen on them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a TCP port of the loopback interface that nothing listens on.

    Meanwhile the kernel gives it to nobody who asks for any port, as the tests in other processes
    do all the time; who asks for this one (with SO_REUSEADDR, as servers do) gets it.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        port: int = reservation.getsockname()[1]
        yield port
