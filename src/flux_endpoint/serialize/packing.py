"""Several buffers in one text: of each its length in characters, a newline, and the buffer."""

from __future__ import annotations

from collections.abc import Iterable

from flux_endpoint.errors import DeserializationError

#: A length has at most so many digits; whatever is longer is not a length.
_MOST_DIGITS = 18
_SHOWN = 40


def pack_buffers(buffers: Iterable[str]) -> str:
    """Return `buffers` as one text."""
    return "".join([f"{len(buffer)}\n{buffer}" for buffer in buffers])


def unpack_buffers(packed: str) -> list[str]:
    """Return the buffers that `pack_buffers` joined.

    Raises:
        DeserializationError: `packed` is malformed; the text says where and how.
    """
    buffers: list[str] = []
    position = 0
    while position < len(packed):
        newline = packed.find("\n", position, position + _MOST_DIGITS + 1)
        digits = packed[position:newline] if newline >= 0 else ""
        if not (digits.isascii() and digits.isdigit()):
            found = packed[position : position + _SHOWN]
            raise DeserializationError(
                f"malformed packed buffer: at character {position} a length and a newline are "
                f"expected, found {found!r}"
            )
        start = newline + 1
        position = start + int(digits)
        if position > len(packed):
            raise DeserializationError(
                f"truncated packed buffer: buffer {len(buffers)} should have {digits} characters, "
                f"only {len(packed) - start} are left"
            )
        buffers.append(packed[start:position])
    return buffers
