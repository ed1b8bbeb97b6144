"""A TCP proxy whose connections can be cut, or go dead, while a test watches."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from ports import reserve_any


class Proxy:
    """Forwards a loopback port to `host:port`; `stop` and `start` keep the port.

    Use as a context manager, or call `start` and `stop`.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._lock = threading.Lock()
        self._server: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._sockets: set[socket.socket] = set()
        self._silent = False
        self._left: int | None = None
        self._flows = threading.Event()
        self._flows.set()
        #: Keeps the port from others while nothing listens there.
        number, self._reservation = reserve_any()
        #: The port to connect to.
        self.port = number
        #: Counts the connections that were made through the proxy.
        self.accepted = threading.Semaphore(0)

    def start(self) -> None:
        """Listen, and forward."""
        self._silent, self._left = False, None
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._acceptor = threading.Thread(target=self._accept, args=(self._server,), daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        """Cut all connections, and refuse new ones."""
        server, self._server = self._server, None
        if server is not None and self._acceptor is not None:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            self._acceptor.join()  # what it was about to forward is cut as well
            server.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections; new ones are forwarded."""
        with self._lock:
            self._left = None
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    each.shutdown(socket.SHUT_RDWR)

    def cut_after(self, size: int) -> None:
        """Cut as soon as `size` more bytes have gone towards the target."""
        with self._lock:
            self._left = size

    def black_hole(self) -> None:
        """Swallow everything from now on; connections stay, and are still accepted."""
        self._silent = True

    def hold(self) -> None:
        """Pass nothing on until `release`; nothing is lost."""
        self._flows.clear()

    def release(self) -> None:
        """Pass on what was held, and what comes."""
        self._flows.set()

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.stop()
        self._reservation.close()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            with self._lock:
                self._sockets |= {near, far}
            self.accepted.release()
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(far, near, False), daemon=True)
        back.start()
        self._pump(near, far, True)
        back.join()
        # Not before: the number of a closed socket is given to the next one, which whoever was
        # about to read from this one would then read from.
        with self._lock:
            self._sockets -= {near, far}
            near.close()
            far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, outward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._silent:
                    continue
                if outward and self._spent(len(data)):
                    self.cut()
                    return
                self._flows.wait()
                sink.sendall(data)
        if self._silent:
            return
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _spent(self, size: int) -> bool:
        with self._lock:
            if self._left is None:
                return False
            self._left -= size
            return self._left < 0
