"""Strategies for arguments and results."""

# ruff: noqa: D102 - what serialize and deserialize promise is said in SerializationStrategy

from __future__ import annotations

import base64
import binascii
import contextlib
import contextvars
import io
import json
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import dill

from flux_endpoint.errors import DeserializationError
from flux_endpoint.serialize.strategies import SerializationStrategy

_Classes = Mapping[tuple[str, str], type]
#: Classes that dill and pickle write by their names, and whose instances only have attributes.
_simple: dict[tuple[str, str], type] = {}
_read_as: contextvars.ContextVar[_Classes | None] = contextvars.ContextVar("read_as", default=None)


@contextlib.contextmanager
def reading_as(classes: _Classes) -> Iterator[None]:
    """Let dill resolve these classes, by module and name, instead of importing them."""
    token = _read_as.set(classes)
    try:
        yield
    finally:
        _read_as.reset(token)


def written_by_pickle(type_: type) -> None:
    """Let pickle write and read the instances of exactly `type_`, fifty times as fast as dill.

    Args:
        type_: an importable class without a method or slot that changes how it is pickled.
    """
    _simple[type_.__module__, type_.__qualname__] = type_


class _Unpickler(dill.Unpickler):  # type: ignore[misc]  # dill has no types
    def find_class(self, module: str, name: str) -> Any:
        return (_read_as.get() or {}).get((module, name)) or super().find_class(module, name)


class _NeedsDillError(Exception):
    """A pickle refers to an object by name."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of built-in types, ten times as fast as dill, which is written in Python."""

    def find_class(self, module: str, name: str) -> Any:
        found = (_read_as.get() or _simple).get((module, name))
        if found is None:
            raise _NeedsDillError(module, name)
        return found


#: Types that dill and pickle write identically; exact types, no subclasses.
_PLAIN = frozenset({bool, bytes, float, int, str, type(None)})
#: The largest pickle (bytes) whose base64 has lines.
IN_LINES = 16 << 10
#: The most items of a container that is checked for other types.
_FEW = 64


def _is_plain(data: Any) -> bool:
    """Return whether `data` is plain, or a small container of plain values."""
    kind = type(data)
    if kind in _PLAIN:
        return True
    if _simple.get((kind.__module__, kind.__qualname__)) is kind:
        return _is_plain(vars(data))
    if kind not in (dict, list, tuple) or len(data) > _FEW:
        return False
    values = [*data, *data.values()] if kind is dict else data
    return all(type(value) in _PLAIN for value in values)


def dill_to_text(data: Any) -> str:
    """Return `data` through dill as base64 that ends with a newline.

    Up to `IN_LINES` bytes it is the official SDK's text, with a newline after every 76 characters.
    More is one line, which any reader of base64 takes: each program on its way is faster with it.
    """
    plain = _is_plain(data)
    pickled = pickle.dumps(data, dill.settings["protocol"]) if plain else dill.dumps(data)
    if len(pickled) <= IN_LINES:
        return base64.encodebytes(pickled).decode()
    return binascii.b2a_base64(pickled).decode()


def dill_from_text(text: str) -> Any:
    """Return the object in `text`.

    Raises:
        DeserializationError: `text` is not base64. The object itself may raise anything else.
    """
    pickled = base64_bytes(text)
    with contextlib.suppress(_NeedsDillError):  # raised before any of the pickle's code has run
        return _PlainUnpickler(io.BytesIO(pickled)).load()
    if not _read_as.get():
        return dill.loads(pickled)  # noqa: S301 - what this is for
    return _Unpickler(io.BytesIO(pickled)).load()


def base64_bytes(text: str) -> bytes:
    """Return the bytes in `text`.

    Raises:
        DeserializationError: it is not base64.
    """
    try:
        return base64.decodebytes(text.encode())
    except (binascii.Error, UnicodeEncodeError) as error:
        raise DeserializationError(f"the payload is not base64: {error}") from error


class DillDataBase64(SerializationStrategy):
    """Any picklable object, through dill, as base64. The default for data."""

    identifier = "00\n"
    for_code = False

    def serialize(self, data: Any) -> str:
        return self.identifier + dill_to_text(data)

    def deserialize(self, payload: str) -> Any:
        return dill_from_text(self.chomp(payload))


class JSONData(SerializationStrategy):
    """JSON values, as JSON: tuples become lists, keys become strings."""

    identifier = "11\n"
    for_code = False

    def serialize(self, data: Any) -> str:
        return self.identifier + json.dumps(data)

    def deserialize(self, payload: str) -> Any:
        return json.loads(self.chomp(payload))
