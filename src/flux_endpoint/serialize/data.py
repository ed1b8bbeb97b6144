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
_read_as: contextvars.ContextVar[_Classes | None] = contextvars.ContextVar("read_as", default=None)


@contextlib.contextmanager
def reading_as(classes: _Classes) -> Iterator[None]:
    """Let dill find these classes, by module and name, instead of what it would import."""
    token = _read_as.set(classes)
    try:
        yield
    finally:
        _read_as.reset(token)


class _Unpickler(dill.Unpickler):  # type: ignore[misc]  # dill has no types
    def find_class(self, module: str, name: str) -> Any:
        return (_read_as.get() or {}).get((module, name)) or super().find_class(module, name)


class _NeedsDillError(Exception):
    """A pickle refers to something by name."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of built-in types, ten times as fast as dill, which is in Python."""

    def find_class(self, module: str, name: str) -> Any:
        raise _NeedsDillError(module, name)


#: Types whose values dill and pickle write alike: these themselves, no subclasses.
_PLAIN = frozenset({bool, bytes, float, int, str, type(None)})


def dill_to_text(data: Any) -> str:
    """Return `data` through dill as base64, a newline after every 76 characters and at the end."""
    if type(data) in _PLAIN:
        pickled = pickle.dumps(data, dill.settings["protocol"])
    else:
        pickled = dill.dumps(data)
    return base64.encodebytes(pickled).decode()


def dill_from_text(text: str) -> Any:
    """Return the object in `text`.

    Raises:
        DeserializationError: `text` is no base64. Everything else comes from the object itself.
    """
    pickled = base64_bytes(text)
    with contextlib.suppress(_NeedsDillError):  # before that, nothing of the pickle's has run
        return _PlainUnpickler(io.BytesIO(pickled)).load()
    if not _read_as.get():
        return dill.loads(pickled)  # noqa: S301 - what this is for
    return _Unpickler(io.BytesIO(pickled)).load()


def base64_bytes(text: str) -> bytes:
    """Return the bytes in `text`.

    Raises:
        DeserializationError: it is no base64.
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
    """What JSON can say, as JSON: tuples come back as lists, keys as strings."""

    identifier = "11\n"
    for_code = False

    def serialize(self, data: Any) -> str:
        return self.identifier + json.dumps(data)

    def deserialize(self, payload: str) -> Any:
        return json.loads(self.chomp(payload))
