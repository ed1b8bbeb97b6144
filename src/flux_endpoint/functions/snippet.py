"""The last lines of a command's output, read from the end of the file in bounded memory."""

from __future__ import annotations

import json
import os
import stat

from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES

_BLOCK = 64 * 1024
#: Bytes reserved for the rest of a result, besides command and streams.
_OVERHEAD = 64 * 1024
#: The most characters that JSON needs for one: two escaped surrogates.
_JSON_WORST = 12


def snippet_limit(command: str) -> int:
    """Return the most bytes of each stream's snippet with which a result stays within its limit."""
    room = MAX_PAYLOAD_BYTES - _OVERHEAD - len(json.dumps(command))
    return max(room // 2, 0)


def last_lines(descriptor: int, start: int, lines: int, limit: int) -> str:
    r"""Return the last `lines` lines of a file, from `start` on.

    Args:
        descriptor: the file, open for reading; anything but a regular file has no lines.
        start: first byte of the file that may be read.
        lines: the most lines.
        limit: the most bytes of the text, as UTF-8 and as JSON; its beginning is cut off.

    Returns:
        The text; invalid UTF-8 is replaced, line ends are `\n`.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or lines <= 0 or limit <= 0:
        return ""
    end = status.st_size
    if end < start:  # the command truncated the file
        start = 0
    raw, at_start = _tail(descriptor, start, end, lines, limit)
    if not at_start:
        raw = _without_broken_character(raw)
    text = raw.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    terminated = text.endswith("\n")
    parts = text.split("\n")
    return _within(limit, "\n".join(parts[-(lines + terminated) :]))


def _tail(descriptor: int, start: int, end: int, lines: int, limit: int) -> tuple[bytes, bool]:
    """Return the file's end, with at least `lines` lines if possible, and whether that is all."""
    blocks: list[bytes] = []
    position, newlines = end, 0
    first = max(start, end - limit)
    while position > first and newlines <= lines:
        size = min(_BLOCK, position - first)
        block = os.pread(descriptor, size, position - size)
        if len(block) < size:  # the file was truncated in the meantime
            block = block.ljust(size, b"\n")
        newlines += block.count(b"\n")
        blocks.append(block)
        position -= size
    return b"".join(reversed(blocks)), position == start


def _without_broken_character(raw: bytes) -> bytes:
    """Remove the rest of a UTF-8 character whose first bytes were not read."""
    begin = 0
    while begin < min(3, len(raw)) and raw[begin] & 0xC0 == 0x80:
        begin += 1
    return raw[begin:]


def _within(limit: int, text: str) -> str:
    while len(text) * _JSON_WORST > limit:
        cost = max(len(text.encode("utf-8", "replace")), len(json.dumps(text)))
        if cost <= limit:
            break
        text = text[len(text) - len(text) * limit // cost :]
    return text
