"""Bundles: many small messages in one, between this project's programs.

Brokers, confirms and acknowledgements cost work per message. A publisher packs messages with the
same exchange and routing key into a bundle if it knows that the consumer can read bundles. The
consumer handles the parts as separate deliveries, and acknowledges the bundle with the last one.

The body of a message with the content type `CONTENT_TYPE` is: the length of the index (four bytes,
big-endian); the index; all heads; the rest of each part. The index is UTF-8 JSON: `heads`, the
lengths of the heads; `headers`, common to all parts; `parts`, for each part the number of its head
(or null), the length of its rest, its own headers and its message id (or null). The body of a part
is its head and its rest, so a common beginning of many parts is sent once.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flux_endpoint.errors import InvalidMessageError

CONTENT_TYPE = "application/vnd.flux-endpoint.bundle"
#: The most parts of a bundle, and bytes of their bodies; a larger message is sent alone.
MAX_PARTS, MAX_BYTES = 64, 256 << 10

_LENGTH = struct.Struct(">I")
_NO_HEADERS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Part:
    """A message of a bundle.

    Attributes:
        rest: its body without the head.
        head: the beginning of its body; the same object for all parts that share it.
        headers: the part's own AMQP headers; values must be JSON.
        message_id: identifies the message in logs.
    """

    rest: bytes
    head: bytes = b""
    headers: Mapping[str, Any] = field(default_factory=dict)
    message_id: str | None = None

    @property
    def body(self) -> bytes:
        """The whole body."""
        return self.head + self.rest


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A part as its consumer receives it."""

    body: bytes
    headers: Mapping[str, Any]
    message_id: str | None


def gather(parts: Iterable[Part], limit: int = MAX_PARTS) -> Iterator[list[Part]]:
    """Yield the parts in order, in lists that fit one message: a bundle, or a single part.

    Args:
        parts: the messages to send.
        limit: the most parts of a bundle, for a consumer that accepts fewer than `MAX_PARTS`.
    """
    together: list[Part] = []
    heads: set[int] = set()
    size = 0
    for part in parts:
        more = len(part.rest) + (0 if id(part.head) in heads else len(part.head))
        if together and (len(together) >= min(limit, MAX_PARTS) or size + more > MAX_BYTES):
            yield together
            together, heads, size = [], set(), 0
            more = len(part.rest) + len(part.head)
        together.append(part)
        heads.add(id(part.head))
        size += more
    if together:
        yield together


def pack_bundle(parts: Sequence[Part], headers: Mapping[str, Any] = _NO_HEADERS) -> bytes:
    """Return the body of a bundle.

    Args:
        parts: its messages.
        headers: AMQP headers common to all of them.
    """
    numbers: dict[int, int] = {}
    heads: list[bytes] = []
    index = []
    for part in parts:
        number = None
        if part.head:
            number = numbers.setdefault(id(part.head), len(heads))
            if number == len(heads):
                heads.append(part.head)
        index.append((number, len(part.rest), part.headers, part.message_id))
    described = {"heads": [len(head) for head in heads], "headers": headers, "parts": index}
    text = json.dumps(described, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *heads, *(part.rest for part in parts)))


def unpack_bundle(body: bytes) -> list[Unpacked]:
    """Return the messages in the body of a bundle.

    Raises:
        InvalidMessageError: the body is not a bundle; the text says why.
    """
    try:
        (length,) = _LENGTH.unpack_from(body)
        end = _LENGTH.size + length
        if end > len(body):
            raise ValueError("it ends within its index")
        described = json.loads(body[_LENGTH.size : end])
        return list(_parts(body, end, described))
    except (ValueError, TypeError, LookupError, RecursionError, struct.error) as error:
        raise InvalidMessageError(f"the bundle can't be read: {error}") from error


def _parts(body: bytes, position: int, described: dict[str, Any]) -> Iterator[Unpacked]:
    shared = _object(described["headers"])
    heads: list[bytes] = []
    size = 0
    if len(described["heads"]) > MAX_PARTS or len(described["parts"]) > MAX_PARTS:
        raise ValueError(f"it has more than {MAX_PARTS} parts")
    if not described["parts"]:
        raise ValueError("it has no parts")
    for length in described["heads"]:
        heads.append(_piece(body, position, length))
        position += length
    for number, length, headers, message_id in described["parts"]:
        rest = _piece(body, position, length)
        position += length
        if number is not None and (type(number) is not int or number < 0):
            raise ValueError("a head's number is none")
        if message_id is not None and not isinstance(message_id, str):
            raise TypeError("a message id is no text")
        whole = rest if number is None else heads[number] + rest
        size += len(whole)
        if size > MAX_PARTS * MAX_BYTES:
            raise ValueError("its parts are too large together")
        yield Unpacked(whole, {**shared, **_object(headers)}, message_id)
    if position != len(body):
        raise ValueError("it is longer than its parts")


def _piece(body: bytes, start: int, length: object) -> bytes:
    if type(length) is not int or not 0 <= length <= len(body) - start:
        raise ValueError("a part is longer than what there is")
    return body[start : start + length]


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("headers are no object")
    return value
