"""The agent's connections to its hosts, on a thread of their own."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import zmq

from flux_endpoint.engine.workers.files import PoolAddress
from flux_endpoint.engine.workers.pool_socket import PoolSocket

log = logging.getLogger(__name__)


class HostSocket:
    """Passes messages between hosts and their owner. For any thread.

    Args:
        directory: directory of the socket and its address.
        address: address of this host for the nodes; default: determined automatically.
        spans_hosts: whether hosts may be on other machines.
        on_message: called on this thread with host, kind and parts of each message.

    Raises:
        ConfigurationError: `engine.address` is not an address of this host.
    """

    def __init__(
        self,
        directory: Path,
        address: str | None,
        *,
        spans_hosts: bool,
        on_message: Callable[[str, bytes, list[bytes]], None],
    ) -> None:
        self._on_message = on_message
        self._socket = PoolSocket(directory, address, spans_hosts=spans_hosts)
        self._socket.open()
        self._inbox: deque[Callable[[], None]] = deque()
        self._has_ended = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="held-allocations", daemon=True)
        self._thread.start()

    @property
    def address(self) -> PoolAddress:
        """Where hosts connect to."""
        return self._socket.address

    @property
    def keys(self) -> tuple[str, str]:
        """The CURVE key pair of all hosts: public and secret."""
        return self._socket.client_public, self._socket.client_secret

    def admit(self, host_id: str, identity: str) -> None:
        """Accept messages of a host from now on."""
        self._post(lambda: self._socket.admit(host_id, identity))

    def dismiss(self, host_id: str) -> None:
        """Accept no more messages of a host."""
        self._post(lambda: self._socket.dismiss(host_id))

    def send(self, host_id: str, *frames: bytes) -> None:
        """Send a message; it is lost if the host is gone."""
        self._post(lambda: self._socket.send(host_id, list(frames)))

    def close(self) -> None:
        """Send what is pending, and end."""
        self._post(self._end)
        self._thread.join()
        os.close(self._wake)

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.append(action)
        os.eventfd_write(self._wake, 1)

    def _end(self) -> None:
        self._has_ended = True

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket.source, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while not self._has_ended:
            ready = dict(poller.poll())
            if self._wake in ready:
                os.eventfd_read(self._wake)
            while self._inbox:
                self._safely(self._inbox.popleft())
            self._safely(self._receive)
        self._socket.close()

    def _receive(self) -> None:
        while (message := self._socket.receive()) is not None:
            self._on_message(*message)

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # whatever it is, the other messages go on
            log.exception("a message of a held allocation could not be passed on")
