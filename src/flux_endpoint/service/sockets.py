"""Sockets that the service listens on."""

import socket

from flux_endpoint.errors import ConfigurationError


def listen(host: str, port: int, remedy: str, backlog: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: host name or address.
        port: port; 0: a free one.
        remedy: advice for the error message.
        backlog: length of the kernel's listen queue.

    Raises:
        ConfigurationError: the socket can't be bound to the address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except (OSError, UnicodeError) as error:  # UnicodeError: not a valid host name
        reason = getattr(error, "strerror", None) or "that is no name of a host"
        raise ConfigurationError(f"can't listen on {host}:{port}: {reason}; {remedy}") from error
    return listener
