"""Sockets that the service listens on."""

import socket

from flux_endpoint.errors import ConfigurationError


def listen(host: str, port: int, remedy: str, backlog: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: name or address.
        port: 0 takes a free one.
        remedy: what to do if it can't be listened on, for the error.
        backlog: connections that the kernel keeps for us.

    Raises:
        ConfigurationError: the address can't be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except (OSError, UnicodeError) as error:  # UnicodeError: it can't be a name of a host at all
        reason = getattr(error, "strerror", None) or "that is no name of a host"
        raise ConfigurationError(f"can't listen on {host}:{port}: {reason}; {remedy}") from error
    return listener
