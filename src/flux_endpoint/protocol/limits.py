"""Size limits that all parts of the system share."""

from __future__ import annotations

#: The most bytes of a task's arguments, or of a task's result (10 MiB).
MAX_PAYLOAD_BYTES = 10 * 2**20

#: The most bytes of a REST request. A batch has many payloads.
MAX_REQUEST_BYTES = 64 * 2**20

#: The same for a REST request that has neither functions nor payloads (4 MiB).
MAX_SMALL_REQUEST_BYTES = 4 * 2**20

#: The most bytes of each output stream of a task that are kept, and how many by default.
MAX_OUTPUT = 2**20
DEFAULT_OUTPUT = 64 * 2**10

# Identifiers of base64 strategies: the value has three quarters of the text's size.
_BASE64_IDENTIFIERS = ("00\n", "01\n", "02\n", "03\n", "04\n")
_IDENTIFIER_LENGTH = 3
# A text ends with up to two padding characters and a newline.
_PADDING_PLACES = 3


def carried_bytes(buffer: str) -> int:
    """Return the size in bytes of the value in a serialized `buffer`.

    Base64 buffers count decoded, all others by their characters, so that the limit is 10 MiB of
    value for every strategy.
    """
    if not buffer.startswith(_BASE64_IDENTIFIERS):
        return len(buffer)
    text = len(buffer) - _IDENTIFIER_LENGTH - _newlines(buffer)
    padding = buffer.count("=", -_PADDING_PLACES)
    return max(text * 3 // 4 - padding, 0)


def _newlines(buffer: str) -> int:
    first = buffer.find("\n", _IDENTIFIER_LENGTH)
    if first < 0 or first == len(buffer) - 1:  # the usual case, twenty times as fast as `count`
        return int(first >= 0)
    return buffer.count("\n", first)
