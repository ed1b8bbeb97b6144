"""pika's connection, with larger reads and writes, and an end that never hangs."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pika import frame, spec
from pika.adapters.select_connection import SelectConnection
from pika.exceptions import StreamLostError

#: Bytes that are gathered into one write; a larger frame is sent alone, uncopied.
_WRITE = 1 << 16
#: The most bytes of one read.
_READ = 1 << 16
#: The beginning of a frame (AMQP 0-9-1, 4.2.3): type, channel, and size of its payload.
_FRAME_START = struct.Struct(">BHI")
_FRAME_END = bytes([spec.FRAME_END])


class WireConnection(SelectConnection):
    """A `SelectConnection` that can gather frames and can be aborted.

    pika writes each frame to the socket separately, three for a small message, and reads 4 KiB at
    a time. It copies what it has of a frame with each read, and a large body three times before it
    sends it.
    """

    _gathered: list[bytes] | None = None
    _gathered_size = 0
    #: Reads of the present frame, and how many bytes of it are still missing, as far as known.
    _reads: list[bytes]
    _missing = 0

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
        self._reads = []
        super()._proto_connection_made(transport)

    def _on_data_available(self, data_in: bytes) -> None:
        """Give pika a frame once all of it is there."""
        self._reads.append(data_in)
        self._missing -= len(data_in)
        if self._missing > 0:
            return
        arrived = b"".join((self._frame_buffer, *self._reads))
        self._reads.clear()
        self._frame_buffer = b""
        super()._on_data_available(arrived)
        self._missing = _missing(self._frame_buffer)

    def _send_message(
        self, channel_number: int, method_frame: Any, content: tuple[Any, bytes]
    ) -> None:
        """Send a message; a body that needs several frames is copied once into all of them."""
        properties, body = content
        most = self._body_max_length
        if len(body) <= most:
            super()._send_message(channel_number, method_frame, content)
            return
        pieces: list[bytes | memoryview] = [
            frame.Method(channel_number, method_frame).marshal(),
            frame.Header(channel_number, len(body), properties).marshal(),
        ]
        for start in range(0, len(body), most):
            part = memoryview(body)[start : start + most]
            pieces += (
                _FRAME_START.pack(spec.FRAME_BODY, channel_number, len(part)),
                part,
                _FRAME_END,
            )
        # A view, since pika cuts off what the socket has taken.
        frames: Any = memoryview(b"".join(pieces))
        self._output_marshaled_frames([frames])

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


def _missing(received: bytes) -> int:
    """Return the number of bytes that a frame lacks; if its beginning is incomplete: one."""
    if len(received) < _FRAME_START.size:
        return 1
    (_, _, size) = _FRAME_START.unpack_from(received)
    return _FRAME_START.size + int(size) + len(_FRAME_END) - len(received)


def server_of(properties: Mapping[str, Any] | None) -> str:
    """Return product and version from a broker's server properties."""
    known = properties or {}
    return " ".join(str(known[key]) for key in ("product", "version") if known.get(key))
