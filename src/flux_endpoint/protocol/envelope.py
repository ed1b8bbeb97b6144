"""Constants of the wire format that workers need without the schemas of `messages`."""

from __future__ import annotations

import json
from typing import Any

_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode

#: Size (bytes) of a text from which it is copied into JSON as a whole: encoding a MiB character by
#: character takes milliseconds.
LARGE_TEXT = 64 << 10
#: Stands for such a text in the rest of a message.
CUT = "(cut out)"
#: The characters that are themselves in a JSON string.
LITERAL = bytes(range(0x20, 0x7F)).translate(None, b'"\\')
_LITERAL_OR_NEWLINE = LITERAL + b"\n"

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
#: The bytes of each whole stream, where its text has another size: invalid UTF-8 was replaced.
OUTPUT_SIZES = {STDOUT: "stdout_size", STDERR: "stderr_size"}
#: Key there for why the earlier attempts at the task failed: JSON of a list of texts.
FAILED_ATTEMPTS = "failed_attempts"


def compact_json(value: Any) -> bytes:
    """Return `value` as JSON without spaces.

    Raises:
        TypeError, ValueError: JSON can't express it.
    """
    return _encode(value).encode()


def read_compact_json(text: str) -> Any:
    """Return the value that `compact_json` wrote.

    `json.loads` also searches for spaces around it, which takes as long as parsing a small message.

    Raises:
        ValueError, RecursionError: it is not JSON, or there is something around it.
    """
    value, end = _decode(text)
    if end != len(text):
        raise ValueError(f"{len(text) - end} characters after the JSON value")
    return value


def quoted(text: str) -> bytes:
    """Return `text` as a JSON string in ASCII."""
    if len(text) >= LARGE_TEXT and text.isascii():
        literal = text.encode()
        if not literal.translate(None, _LITERAL_OR_NEWLINE):
            return b"".join((b'"', literal.replace(b"\n", b"\\n"), b'"'))
    return _encode(text).encode()
