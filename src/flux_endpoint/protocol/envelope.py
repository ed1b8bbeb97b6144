"""Constants of the wire format that workers need without the schemas of `messages`."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

_encode = json.JSONEncoder(separators=(",", ":")).encode

#: Size (bytes) of a text from which it is copied into and out of JSON as a whole: encoding or
#: parsing a MiB character by character takes milliseconds.
LARGE_TEXT = 64 << 10
#: Stands for such a text in the rest of a message.
CUT = "(cut out)"
#: Newlines, and the characters that are themselves in a JSON string.
_LITERAL = b"\n" + bytes(range(0x20, 0x7F)).translate(None, b'"\\')

#: First byte of each message.
VERSION_BYTE = b"\x01"
#: Key in a result's `details` for the return code of a command; negative: a signal.
RETURNCODE = "returncode"
#: Key in a result's `details` for the id, in decimal, of a task's Flux job.
JOBID = "flux_jobid"
#: Keys there for what is recorded of a run: the node's host name (of a job: its nodes, as a host
#: list), the worker's process id, the number of attempts if there was more than one, CPU time in
#: seconds, and peak memory in bytes.
NODE, WORKER, ATTEMPTS = "node", "worker", "attempts"
CPU_TIME, MAX_RSS = "cpu_time", "max_rss"
#: Keys there for the end of what a task printed, by stream, and for the number of bytes before it.
#: They are absent where there is nothing. The service takes them out for official clients.
STDOUT, STDERR = "stdout", "stderr"
STDOUT_DROPPED, STDERR_DROPPED = "stdout_dropped", "stderr_dropped"
#: For each stream the key of its text and of the number of dropped bytes.
OUTPUT = ((STDOUT, STDOUT_DROPPED), (STDERR, STDERR_DROPPED))
#: Key there for why the earlier attempts at the task failed: JSON of a list of texts.
FAILED_ATTEMPTS = "failed_attempts"


def compact_json(value: Any) -> bytes:
    """Return `value` as JSON without spaces.

    Raises:
        TypeError, ValueError: JSON can't express it.
    """
    return _encode(value).encode()


def quoted(text: str) -> bytes:
    """Return `text` as a JSON string in ASCII."""
    if len(text) >= LARGE_TEXT and text.isascii():
        literal = text.encode()
        if not literal.translate(None, _LITERAL):
            return b"".join((b'"', literal.replace(b"\n", b"\\n"), b'"'))
    return _encode(text).encode()


@functools.cache
def _beginning_of(key: str) -> re.Pattern[bytes]:
    return re.compile(rb'"%s"\s*:\s*"' % key.encode())


def cut_out(body: bytes, key: str) -> tuple[bytes | None, bytes]:
    """Return the text of a key in a large message, and the message with `CUT` in its place.

    Most of such a message is one text in base64. To parse it would make two more copies.

    Args:
        body: the message.
        key: the key; the caller checks that it is where it belongs.

    Returns:
        The text and the rest; `None` and the message itself if the text must be parsed.
    """
    # A quote within a string has a backslash before it, so this is a key.
    beginning = _beginning_of(key)
    found = beginning.search(body)
    if found is None:
        return None, body
    end = body.find(b'"', found.end())
    value = body[found.end() : max(end, 0)]
    if end < 0 or b"\n" in value:
        return None, body
    value = value.replace(b"\\n", b"\n")  # after a strategy's identifier, and between lines
    if value.translate(None, _LITERAL):
        return None, body
    rest = b"".join((body[: found.end()], CUT.encode(), body[end:]))
    # Of two such keys, it is not known here which one is meant.
    return (value, rest) if len(beginning.findall(rest)) == 1 else (None, body)


def read_json(body: bytes, key: str) -> Any:
    """Return the JSON of a message, without its version byte.

    Args:
        body: the message.
        key: key of a text in its `data` that may be large.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    if len(body) >= LARGE_TEXT:
        value, rest = cut_out(body, key)
        envelope = None if value is None else json.loads(rest[1:])
        data = envelope.get("data") if isinstance(envelope, dict) else None
        if value is not None and isinstance(data, dict) and data.get(key) == CUT:
            data[key] = value.decode()
            return envelope
    return json.loads(body[1:])
