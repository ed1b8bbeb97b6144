"""Sizes that every part of the system agrees on."""

from __future__ import annotations

#: The most that one task's arguments, or one task's result, may carry, in bytes (10 MiB).
MAX_PAYLOAD_BYTES = 10 * 2**20

#: The most that one REST request may be, in bytes. A batch holds many payloads.
MAX_REQUEST_BYTES = 64 * 2**20

#: The same of a REST request that carries neither functions nor payloads (4 MiB).
MAX_SMALL_REQUEST_BYTES = 4 * 2**20

# Strategies whose text is base64: the value's own bytes are three quarters of it.
_BASE64_IDENTIFIERS = ("00\n", "01\n", "02\n", "03\n", "04\n")
_IDENTIFIER_LENGTH = 3
# Up to two characters of padding and a newline end a text.
_PADDING_PLACES = 3


def carried_bytes(buffer: str) -> int:
    """Return how many bytes of value a serialized `buffer` carries.

    Base64 buffers count with what they decode to, every other kind with its characters, so that the
    limit is the same 10 MiB of value whichever strategy wrote it.
    """
    if not buffer.startswith(_BASE64_IDENTIFIERS):
        return len(buffer)
    text = len(buffer) - _IDENTIFIER_LENGTH - buffer.count("\n", _IDENTIFIER_LENGTH)
    padding = buffer.count("=", -_PADDING_PLACES)
    return max(text * 3 // 4 - padding, 0)
