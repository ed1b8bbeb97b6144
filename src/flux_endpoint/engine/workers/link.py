"""The connection of a process on a node to its agent, or to the next agent."""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum, auto
from pathlib import Path

import zmq

from flux_endpoint import logs
from flux_endpoint.engine.workers.files import PoolAddress

log = logging.getLogger(__name__)

#: What a monitor's first frame has: the event and its value (zmq_socket_monitor(3)). pyzmq's reader
#: of it imports asyncio, which costs each manager's start a fifth of its time.
_EVENT = struct.Struct("=Hi")
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED


class Change(Enum):
    """Changes of the connection."""

    MET = auto()
    LOST = auto()


@dataclass(frozen=True)
class LinkSettings:
    """Settings of a manager's or a host's connection, with secrets: not for a command line."""

    #: Its ZeroMQ identity, a secret by which the agent recognizes it.
    identity: str
    #: Directory of `pool.json`, which has the address of a later agent.
    directory: str
    #: ZeroMQ address of the agent that starts it.
    connect: str
    #: CURVE public key of the agent, and its own key pair; empty on a host-local connection.
    server_key: str
    public_key: str
    secret_key: str
    #: Seconds in which it must first reach the agent.
    start_timeout: float

    def dump(self) -> str:
        """Return the settings as text for an environment variable."""
        return json.dumps(asdict(self))


class PoolLink:
    """One ZeroMQ connection at a time; no messages are left over from an earlier one.

    Messages that can't be sent are dropped: after its greeting, a manager repeats what matters.

    Args:
        settings: the process's.
    """

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._address = PoolAddress(settings.connect, settings.server_key)
        self._context = zmq.Context()
        self.connected = False
        #: Monotonic time since when there is no connection; `None` while there is one.
        self.lost_at: float | None = time.monotonic()
        #: Whether there ever was one.
        self.was_met = False
        self.socket: zmq.Socket[bytes]
        self.monitor: zmq.Socket[bytes]
        self._open()

    @property
    def address(self) -> str:
        """The pool's address."""
        return self._address.connect

    def _new_socket(self) -> zmq.Socket[bytes]:
        connection = self._context.socket(zmq.DEALER)
        connection.setsockopt(zmq.IDENTITY, self._settings.identity.encode())
        connection.setsockopt(zmq.LINGER, 1000)
        connection.setsockopt(zmq.SNDHWM, 0)
        connection.setsockopt(zmq.RCVHWM, 0)  # the pool bounds the number of its messages
        connection.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        connection.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20000)
        connection.setsockopt(zmq.RECONNECT_IVL, 100)
        connection.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if self._address.server_key:
            connection.curve_serverkey = self._address.server_key.encode()
            connection.curve_publickey = self._settings.public_key.encode()
            connection.curve_secretkey = self._settings.secret_key.encode()
        return connection

    def _open(self) -> None:
        self.socket = self._new_socket()
        self.monitor = self.socket.get_monitor_socket(_EVENTS)
        self.socket.connect(self._address.connect)  # only now, so that the monitor misses nothing

    def _close(self, linger: int) -> None:
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close(linger)

    @property
    def sources(self) -> Sequence[zmq.Socket[bytes]]:
        """The sockets to poll; they differ after each `Change`."""
        return self.socket, self.monitor

    def send(self, *frames: bytes) -> None:
        """Send a message; it is dropped if there is no connection."""
        if self.connected:
            self.socket.send_multipart(frames)

    def receive(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Yield the received messages, as (kind, parts)."""
        while True:
            try:
                kind, *parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield kind, parts

    def changes(self) -> Iterator[Change]:
        """Yield the changes of the connection; a new one is started after `LOST`."""
        while self.monitor.poll(0):
            event, _ = _EVENT.unpack_from(self.monitor.recv_multipart()[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected = self.was_met = True
                self.lost_at = None
                yield Change.MET
            elif event == zmq.EVENT_DISCONNECTED and self.connected:
                self.connected = False
                self.lost_at = time.monotonic()
                self._reopen()
                yield Change.LOST
                return
            elif event == zmq.EVENT_CONNECT_RETRIED and self._has_moved():
                logs.event(log, logging.INFO, "agent has another address", address=self.address)
                self._reopen()
                yield Change.LOST
                return

    def _reopen(self) -> None:
        self._close(0)
        self._has_moved()
        self._open()

    def _has_moved(self) -> bool:
        try:
            address = PoolAddress.read(Path(self._settings.directory))
        except (OSError, ValueError):
            return False  # the node may not mount the endpoint's directory
        before, self._address = self._address, address
        return before != address

    def close(self) -> None:
        """Send pending messages, for at most a second, and close."""
        self._close(1000)
        self._context.term()
