"""Reserves free ports for programs that will listen on them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from flux_endpoint.stack.ports import free_ports, reserve


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a TCP port of the loopback interface that nothing listens on.

    Meanwhile, no program that asks for any free port gets it, e.g. tests in other processes. A
    program that asks for this port with SO_REUSEADDR, as servers do, gets it.
    """
    port, reservation = reserve_any()
    with reservation:
        yield port


def reserve_any() -> tuple[int, socket.socket]:
    """Return such a port, and the socket that reserves it until it is closed."""
    while True:
        (port,) = free_ports(1)
        try:
            return port, reserve(port)
        except OSError:  # another test process was given it at the same moment
            continue
