"""Several buffers in one text: each is its length in characters, a newline, and the buffer."""

from __future__ import annotations

from collections.abc import Iterable

from flux_endpoint.errors import DeserializationError, PackedBufferError

#: The most digits of a length.
_MAX_DIGITS = 18
_SHOWN = 40
_BUFFERS_OF_A_TASK = 3


def pack_buffers(buffers: Iterable[str]) -> str:
    """Return `buffers` as one text."""
    return "".join([part for buffer in buffers for part in (f"{len(buffer)}\n", buffer)])


def unpack_buffers(packed: str) -> list[str]:
    """Return the buffers that `pack_buffers` joined.

    Raises:
        PackedBufferError: `packed` is malformed; the error says where and how.
    """
    buffers: list[str] = []
    position = 0
    while position < len(packed):
        newline = packed.find("\n", position, position + _MAX_DIGITS + 1)
        digits = packed[position:newline] if newline >= 0 else ""
        if not (digits.isascii() and digits.isdigit()):
            raise _malformed(packed, position, digits)
        start = newline + 1
        position = start + int(digits)
        if position > len(packed):
            raise PackedBufferError(
                f"Truncated buffer: buffer {len(buffers)} should have {digits} characters, "
                f"only {len(packed) - start} are left"
            )
        buffers.append(packed[start:position])
    return buffers


def buffers_of_task(packed: str) -> list[str]:
    """Return the buffers of function, args and kwargs in a packed task.

    Raises:
        DeserializationError: `packed` is malformed, or has another number of buffers.
    """
    buffers, inputs = task_with_inputs(packed)
    if inputs:
        raise _miscounted(len(buffers) + len(inputs))
    return buffers


def task_with_inputs(packed: str) -> tuple[list[str], list[str]]:
    """Return the buffers of function, args and kwargs, and those of the results that a task takes.

    Raises:
        DeserializationError: `packed` is malformed, or has too few buffers.
    """
    buffers = unpack_buffers(packed)
    if len(buffers) < _BUFFERS_OF_A_TASK:
        raise _miscounted(len(buffers))
    return buffers[:_BUFFERS_OF_A_TASK], buffers[_BUFFERS_OF_A_TASK:]


def _miscounted(count: int) -> DeserializationError:
    return DeserializationError(
        f"a task is three buffers, function, args and kwargs; this one has {count}"
    )


def _malformed(packed: str, position: int, length: str) -> PackedBufferError:
    if not length:
        what = "Missing newline delimiter"
    elif length[0] == "-" and length[1:].isdigit():
        what = f"Length delimiter must be non-negative, not {length}"
    else:
        what = f"Invalid length delimiter {length!r}"
    found = packed[position : position + _SHOWN]
    return PackedBufferError(
        f"{what}: at character {position} a length and a newline are expected, found {found!r}"
    )
