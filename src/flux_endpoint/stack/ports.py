"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import math
import random
import socket
from collections.abc import Iterator
from pathlib import Path

LOOPBACK = "127.0.0.1"
#: The lowest port to choose; many below have a common meaning.
_LOWEST = 20_000
_HIGHEST = 65_535
#: The kernel assigns ports of this range to outgoing connections (two numbers, see ip(7)).
_EPHEMERAL_FILE = "/proc/sys/net/ipv4/ip_local_port_range"
_random = random.SystemRandom()


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Return whether a server could listen on `port` now."""
    with socket.socket() as sock:
        # As servers do: a port whose last connections are in TIME_WAIT counts as free.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(1)
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that are free at this moment.

    The kernel does not assign them to outgoing connections: only another server can take one before
    the caller's server listens. Where the kernel may assign any port (`ip_local_port_range`), this
    does not hold.
    """
    chosen: list[int] = []
    for port in _in_random_order(_not_ephemeral()):
        if len(chosen) == count:
            break
        if _is_unused(port):
            chosen.append(port)
    return chosen + _any_ports(count - len(chosen))


def _not_ephemeral() -> list[int]:
    """Return the ports that the kernel never chooses by itself."""
    try:
        first, last = map(int, Path(_EPHEMERAL_FILE).read_text().split())
    except (OSError, ValueError):
        return []
    return [*range(_LOWEST, min(first, _HIGHEST + 1)), *range(max(last + 1, _LOWEST), _HIGHEST + 1)]


def _in_random_order(ports: list[int]) -> Iterator[int]:
    """Yield each of `ports` once; a random number for each would cost 40 ms of CPU time."""
    if not ports:
        return
    count, position = len(ports), _random.randrange(len(ports))
    step = _random.randrange(count) or 1
    while math.gcd(step, count) != 1:  # else only a part of them would come
        step += 1
    for _ in ports:
        yield ports[position]
        position = (position + step) % count


def _is_unused(port: int) -> bool:
    """Return whether no socket at all has `port`, not even a reservation."""
    with socket.socket() as sock:
        try:
            sock.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _any_ports(count: int) -> list[int]:
    """Return `count` different free ports that the kernel chooses."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind((LOOPBACK, 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def reserve(port: int) -> socket.socket:
    """Reserve `port` for a server that requests it by number, until the socket is closed.

    The kernel does not assign it to programs that ask for any port. A server can still bind it with
    SO_REUSEADDR, which servers set.

    Raises:
        OSError: the port is in use.
    """
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, port))
    except OSError:
        sock.close()
        raise
    return sock
