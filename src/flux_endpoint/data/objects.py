"""The format of a stored object: a header, a pickle, and the large buffers of the pickle.

The header is three lines: the format's name, the size of the third, and the sizes of pickle and
buffers as JSON. Pickle and buffers follow, each at a multiple of 64 bytes, so that an array can use
the bytes of a mapped file as they are (pickle protocol 5, PEP 574).
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import dill

from flux_endpoint.errors import DataStoreError

_FORMAT = b"flux-endpoint data 1\n"
#: Bytes of the second line, with its newline.
_SECOND = 11
_ALIGNMENT = 64
_PROTOCOL = 5

Buffer = bytes | bytearray | memoryview


class _NeedsDillError(Exception):
    """An object can't be pickled by its name, since the reader has another main program."""


class _Pickler(pickle.Pickler):
    """Writes all that is built-in or belongs to a module: as dill does, but ten times as fast.

    It also leaves the buffers of NumPy's arrays out of the pickle, which dill does not.
    """

    def reducer_override(self, obj: Any) -> Any:
        named = isinstance(obj, type | FunctionType)
        if named and obj.__module__ in (None, "__main__", "__mp_main__"):
            raise _NeedsDillError(obj)
        return NotImplemented


class EncodedObject:
    """An object as bytes. Its large buffers are not copied: it must not change meanwhile.

    Args:
        data: the object; whatever dill raises for it is raised.

    Attributes:
        content: bytes of pickle and buffers.
    """

    def __init__(self, data: Any) -> None:
        self._sections = _pickled(data)
        self.content = sum(len(each) for each in self._sections)

    def parts(self) -> Iterator[Buffer]:
        """Yield all bytes, in parts."""
        sizes = json.dumps(list(map(len, self._sections))).encode() + b"\n"
        header = _FORMAT + b"%0*d\n" % (_SECOND - 1, len(sizes)) + sizes
        for section in (header, *self._sections):
            yield section
            yield bytes(-len(section) % _ALIGNMENT)

    def digest(self) -> tuple[str, int]:
        """Return the SHA-256 of all bytes, in hexadecimal, and their number."""
        hashed, size = hashlib.sha256(), 0
        for part in self.parts():
            hashed.update(part)
            size += len(part)
        return hashed.hexdigest(), size


def _pickled(data: Any) -> list[Buffer]:
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    try:
        _Pickler(stream, _PROTOCOL, buffer_callback=buffers.append).dump(data)
    except Exception:  # noqa: BLE001 - whatever an object raises: dill can pickle more, and says why
        stream, buffers = io.BytesIO(), []
        dill.dump(data, stream, protocol=_PROTOCOL, buffer_callback=buffers.append)
    return [stream.getbuffer(), *(each.raw() for each in buffers)]


def decoded(content: Buffer) -> Any:
    """Return the object in the bytes of an `EncodedObject`; arrays in it use these bytes.

    Args:
        content: the bytes. If they can be changed, so can the arrays.

    Raises:
        DataStoreError: they are not such an object. The object itself may raise anything else.
    """
    view = memoryview(content)
    start = len(_FORMAT) + _SECOND
    if view[: len(_FORMAT)] != _FORMAT:
        raise _malformed()
    try:
        end = start + int(bytes(view[len(_FORMAT) : start]))
        lengths = json.loads(bytes(view[start:end]))
        if not isinstance(lengths, list) or not lengths:
            raise _malformed()
    except ValueError as error:
        raise _malformed() from error
    sections: list[memoryview] = []
    position = _aligned(end)
    for length in lengths:
        if not isinstance(length, int) or not 0 <= length <= len(view) - position:
            raise _malformed()
        sections.append(view[position : position + length])
        position = _aligned(position + length)
    # Whoever allows dill for data allows it here: a reference is such data itself.
    return dill.Unpickler(io.BytesIO(sections[0]), buffers=sections[1:]).load()  # noqa: S301


def _aligned(position: int) -> int:
    return position + -position % _ALIGNMENT


def _malformed() -> DataStoreError:
    return DataStoreError(
        "a stored object has another format: a newer release of Flux Endpoint may have written it"
    )
