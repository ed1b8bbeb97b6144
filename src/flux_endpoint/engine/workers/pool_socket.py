"""The ZeroMQ socket that all managers of an endpoint connect to."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zmq

from flux_endpoint import logs
from flux_endpoint.engine.workers.files import PoolAddress
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.paths import write_private

log = logging.getLogger(__name__)

#: Longest path of a Unix socket in bytes (sun_path without the final NUL, and some reserve).
_LONGEST_SOCKET_PATH = 100
#: Timeout (s) of this host's connection to itself.
_CONNECT_TIMEOUT = 3.0


@dataclass(frozen=True)
class _Key:
    """Makes a pool recognizable to managers on other hosts after a restart.

    Attributes:
        secret: its CURVE secret key.
        port: its latest port; 0 if there is none yet.
    """

    secret: str
    port: int

    @classmethod
    def read(cls, path: Path) -> _Key:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            key = cls(str(values["secret"]), int(values["port"]))
            zmq.curve_public(key.secret.encode())
        except (OSError, ValueError, LookupError, TypeError):  # missing or damaged
            _, secret = zmq.curve_keypair()
            return cls(secret.decode(), 0)
        return key

    def write(self, path: Path) -> None:
        write_private(path, json.dumps({"secret": self.secret, "port": self.port}))


class PoolSocket:
    """Listens for managers, and knows each by its secret identity. For one thread.

    If all jobs run on this host it is a Unix socket in a private directory, else TCP with CURVE.
    Address and key stay the same after a restart, if possible.

    Args:
        directory: the engine's directory.
        address: address of this host for the nodes; default: determined automatically.
        spans_hosts: whether managers may be on other hosts.
    """

    def __init__(self, directory: Path, address: str | None, *, spans_hosts: bool) -> None:
        self._directory = directory
        self._key_file = directory / "pool.key"
        self._own_address = address
        self._spans_hosts = spans_hosts
        self._scratch: str | None = None
        self._path: Path | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._managers: dict[bytes, str] = {}
        self._identities: dict[str, bytes] = {}
        self.address = PoolAddress("", "")
        #: CURVE key pair that all managers share; their identities distinguish them.
        self.client_public = self.client_secret = ""

    def open(self) -> None:
        """Listen, and publish the address for recovered managers.

        Raises:
            ConfigurationError: `engine.address` is not an address of this host.
        """
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # the pool bounds what managers hold
        self._socket.setsockopt(zmq.LINGER, 500)
        # A manager may reconnect before this side has noticed the broken connection; without this
        # option the new connection would be ignored.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.address = self._listen_on_network() if self._spans_hosts else self._listen_here()
        try:
            self.address.write(self._directory)
        except OSError as error:
            logs.event(log, logging.WARNING, "can't publish the pool's address", reason=error)

    def _listen_here(self) -> PoolAddress:
        path = self._directory / "pool.sock"
        if len(bytes(path)) > _LONGEST_SOCKET_PATH:
            self._scratch = tempfile.mkdtemp(prefix="flux-endpoint-")
            path = Path(self._scratch) / "pool.sock"
        path.unlink(missing_ok=True)
        self._path = path
        self._socket.bind(f"ipc://{path}")
        return PoolAddress(f"ipc://{path}", "")

    def _listen_on_network(self) -> PoolAddress:
        key = _Key.read(self._key_file)
        public, secret = zmq.curve_keypair()
        self.client_public, self.client_secret = public.decode(), secret.decode()
        self._socket.curve_server = True
        self._socket.curve_secretkey = key.secret.encode()
        port = self._bind(key.port)
        with suppress(OSError):  # then recovered managers find the address, but reject the new key
            _Key(key.secret, port).write(self._key_file)
        if self._own_address is not None:
            _check_address(self._own_address, port)
        where = f"tcp://{self._own_address or _own_address()}:{port}"
        return PoolAddress(where, zmq.curve_public(key.secret.encode()).decode())

    def _bind(self, port: int) -> int:
        if port:
            with suppress(zmq.ZMQError):  # somebody else has the port now
                self._socket.bind(f"tcp://*:{port}")
                return port
        return self._socket.bind_to_random_port("tcp://*")

    def admit(self, manager_id: str, identity: str) -> None:
        """Accept messages of a manager from now on."""
        self._managers[identity.encode()] = manager_id
        self._identities[manager_id] = identity.encode()

    def dismiss(self, manager_id: str) -> None:
        """Accept no more messages of a manager; if it greets, it is asked to end."""
        identity = self._identities.pop(manager_id, None)
        if identity is not None:
            del self._managers[identity]

    def send(self, manager_id: str, frames: list[bytes]) -> None:
        """Send a message to a manager; if the manager is gone, it is lost."""
        identity = self._identities.get(manager_id)
        if identity is not None:
            self._socket.send_multipart([identity, *frames])

    def send_all(self, frames: list[bytes]) -> None:
        """Send a message to all managers."""
        for identity in self._identities.values():
            self._socket.send_multipart([identity, *frames])

    def receive(self) -> tuple[str, bytes, list[bytes]] | None:
        """Return the next message as (manager, kind, parts), or `None` if there is none."""
        while True:
            try:
                identity, kind, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            manager_id = self._managers.get(identity)
            if manager_id is not None:
                return manager_id, kind, parts
            if kind == b"hello":
                # Most likely a manager that was given up and comes back.
                logs.event(log, logging.WARNING, "rejected a manager with an unknown identity")
                self._socket.send_multipart([identity, b"stop"])

    @property
    def source(self) -> zmq.Socket[bytes]:
        """The socket to poll."""
        return self._socket

    def close(self) -> None:
        """Close the socket and remove its path; the managers have ended."""
        self._socket.close()
        self._context.term()
        PoolAddress.remove(self._directory)
        self._key_file.unlink(missing_ok=True)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


def _own_address() -> str:
    """Return the address of this host's name; the loopback address if there is none."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _check_address(address: str, port: int) -> None:
    """Raise `ConfigurationError` unless this process can listen at `address`."""
    try:
        found = socket.getaddrinfo(address, port, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ConfigurationError(
            f"engine.address: {address!r} is neither an IPv4 address nor a name of one: set it to "
            "the address at which the nodes reach this host, or leave it out"
        ) from None
    host = str(found[0][4][0])
    with socket.socket() as own, suppress(OSError):
        own.bind((host, 0))
        return
    try:  # not an address of this host itself, but it may be translated (NAT)
        socket.create_connection((host, port), _CONNECT_TIMEOUT).close()
    except OSError as error:
        shown = host if host == address else f"{address} ({host})"
        raise ConfigurationError(
            f"engine.address: {shown} is not an address of this host, which can't be reached "
            f"there ({error.strerror or error}): set it to one at which the nodes reach this host, "
            "or leave it out"
        ) from error
