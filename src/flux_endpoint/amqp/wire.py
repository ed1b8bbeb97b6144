"""pika's connection, with larger reads and writes, and an end that never hangs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pika.adapters.select_connection import SelectConnection
from pika.exceptions import StreamLostError

#: Bytes that are gathered into one write; a larger frame is sent alone, uncopied.
_WRITE = 1 << 16
#: The most bytes of one read. For each, pika copies what it has of the present frame, of up to
#: 128 KiB; for each frame, what follows it.
_READ = 1 << 15


class WireConnection(SelectConnection):
    """A `SelectConnection` that can gather frames and can be aborted.

    pika writes each frame to the socket separately, three for a small message, and reads 4 KiB at
    a time.
    """

    _gathered: list[bytes] | None = None
    _gathered_size = 0

    @property
    def server(self) -> str:
        """The peer's product and version, as far as known."""
        return server_of(self.server_properties)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Write the frames sent within the block in as few pieces as possible."""
        self._gathered = []
        try:
            yield
        finally:
            self._write_gathered()
            self._gathered = None

    def abort(self) -> None:
        """End an open connection without the peer; the callback for its end follows."""
        if not self.is_closed:
            self._terminate_stream(StreamLostError("the broker did not answer in time"))

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = _READ  # 4 KiB in pika 1.4
        super()._proto_connection_made(transport)

    def _on_connection_workflow_done(self, conn_or_exc: Any) -> None:
        # For an attempt that was closed during its handshake, pika 1.4 reports the error's class.
        super()._on_connection_workflow_done(
            conn_or_exc() if isinstance(conn_or_exc, type) else conn_or_exc
        )

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._gathered is None:
            super()._adapter_emit_data(data)
            return
        if self._gathered_size + len(data) > _WRITE:
            self._write_gathered()
        self._gathered.append(data)
        self._gathered_size += len(data)

    def _write_gathered(self) -> None:
        if self._gathered:
            pieces = self._gathered
            super()._adapter_emit_data(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            pieces.clear()
        self._gathered_size = 0


def server_of(properties: Mapping[str, Any] | None) -> str:
    """Return product and version from a broker's server properties."""
    known = properties or {}
    return " ".join(str(known[key]) for key in ("product", "version") if known.get(key))
