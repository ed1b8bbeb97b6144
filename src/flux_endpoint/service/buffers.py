"""The structure of packed buffers: their parts and the sizes of these.

A packed buffer has, for each part, the length in characters, a newline, and the part itself. The
service does not deserialize the parts.
"""

from flux_endpoint.protocol.limits import carried_bytes

# A length has at most this many characters, including the newline.
_LENGTH_DIGITS = 12

#: Identifier of a strategy that carries a function as bare source text.
_SOURCE_IDENTIFIER = "st\n"


def split(packed: str) -> list[str] | None:
    """Return the parts of `packed`, or `None` if it is not a packed buffer."""
    parts: list[str] = []
    position = 0
    while position < len(packed):
        newline = packed.find("\n", position, position + _LENGTH_DIGITS)
        digits = packed[position:newline]
        if newline < 0 or not (digits.isascii() and digits.isdigit()):
            return None
        position = newline + 1 + int(digits)
        if position > len(packed):
            return None
        parts.append(packed[newline + 1 : position])
    return parts


def payload_bytes(parts: list[str] | None, packed: str) -> int:
    """Return the number of bytes that a payload carries.

    Args:
        parts: the parts of the payload; `None`: it is not a packed buffer, and its characters
            count.
        packed: the payload.
    """
    return len(packed) if parts is None else sum(carried_bytes(part) for part in parts)


def pack_source(function_name: str, source: str) -> str:
    """Return the packed buffer of a function that was registered as bare source.

    Args:
        function_name: name of the function in `source`.
        source: the source text.
    """
    buffer = f"{_SOURCE_IDENTIFIER}{function_name}:{source}"
    return f"{len(buffer)}\n{buffer}"
