"""Strategies for functions: as dill's byte code, or as source text."""

# ruff: noqa: D102 - what serialize and deserialize promise is said in SerializationStrategy

from __future__ import annotations

import functools
import inspect
import pickle
import textwrap
from collections.abc import Callable
from types import CodeType
from typing import Any

import dill.source

from flux_endpoint.errors import DeserializationError, ReadOnlyStrategyError
from flux_endpoint.serialize.data import base64_bytes, dill_from_text, dill_to_text
from flux_endpoint.serialize.state import State, state_by_name, state_by_value
from flux_endpoint.serialize.strategies import SerializationStrategy

#: The most characters of source whose code is cached.
_KEPT_SOURCE = 65_536


def _dill_source(function: Callable[..., Any]) -> str:
    source: str = dill.source.getsource(function, lstrip=True)
    return source


@functools.lru_cache(128)
def _compiled(name: str, source: str) -> CodeType:
    """Return the code of `source`; cached, because a worker runs the same function repeatedly.

    Executing it creates new objects each time, so nothing is shared between tasks.
    """
    return compile(source, f"<source of {name}>", "exec")


def _run_source(name: str, source: str) -> Any:
    """Return the object named `name` after running `source` in an empty namespace."""
    if source[:1].isspace():  # a function that was defined inside another scope
        source = textwrap.dedent(source)
    namespace: dict[str, Any] = {}
    compiled = _compiled if len(source) <= _KEPT_SOURCE else _compiled.__wrapped__
    exec(compiled(name, source), namespace)  # noqa: S102 - what this is for
    if name not in namespace:
        raise DeserializationError(f"the source defines no {name!r}")
    return namespace[name]


class DillCode(SerializationStrategy):
    """The function through dill: byte code, or a reference if it is importable. The default.

    Both sides need the same minor version of Python.
    """

    identifier = "01\n"
    for_code = True

    def serialize(self, data: Any) -> str:
        return self.identifier + dill_to_text(data)

    def state(self, data: Any) -> State | None:
        return state_by_name(data) or state_by_value(data)

    def deserialize(self, payload: str) -> Any:
        return dill_from_text(self.chomp(payload))


class PickleCode(SerializationStrategy):
    """The function through pickle. Only reads very old functions."""

    identifier = "02\n"
    for_code = True
    read_only = True

    def serialize(self, data: Any) -> str:  # noqa: ARG002 - refuses all alike
        raise ReadOnlyStrategyError("PickleCode only reads; use DillCode")

    def deserialize(self, payload: str) -> Any:
        return pickle.loads(base64_bytes(self.chomp(payload)))  # noqa: S301 - what this is for


class _DilledSource(SerializationStrategy):
    """A pair of name and source, through dill."""

    def _source(self, function: Any) -> str:
        raise NotImplementedError

    def serialize(self, data: Any) -> str:
        name = data.__name__
        return self.identifier + dill_to_text((name, self._source(data)))

    def state(self, data: Any) -> State | None:
        return state_by_value(data)

    def deserialize(self, payload: str) -> Any:
        name, source = dill_from_text(self.chomp(payload))
        return _run_source(name, source)


class DillCodeTextInspect(_DilledSource):
    """The function's source as found by `inspect`, through dill.

    Deprecated: use `PureSourceTextInspect`.
    """

    identifier = "03\n"
    for_code = True
    state = _DilledSource.state

    def _source(self, function: Any) -> str:
        return inspect.getsource(function)


class DillCodeSource(_DilledSource):
    """The function's source as found by dill, through dill.

    Deprecated: use `PureSourceDill`.
    """

    identifier = "04\n"
    for_code = True
    state = _DilledSource.state

    def _source(self, function: Any) -> str:
        return _dill_source(function)


class _PureSource(SerializationStrategy):
    """Name, colon, source."""

    def _source(self, function: Any) -> str:
        raise NotImplementedError

    def serialize(self, data: Any) -> str:
        name: str = data.__name__
        return f"{self.identifier}{name}:{self._source(data)}"

    def state(self, data: Any) -> State | None:
        return state_by_value(data)

    def deserialize(self, payload: str) -> Any:
        name, colon, source = self.chomp(payload).partition(":")
        if not colon:
            raise DeserializationError("the payload has no colon between name and source")
        return _run_source(name, source)


class PureSourceTextInspect(_PureSource):
    """The function's source as found by `inspect`. Works across versions of Python."""

    identifier = "st\n"
    for_code = True
    state = _PureSource.state

    def _source(self, function: Any) -> str:
        return inspect.getsource(function)


class PureSourceDill(_PureSource):
    """The function's source as found by dill, also in an interactive interpreter."""

    identifier = "sd\n"
    for_code = True
    state = _PureSource.state

    def _source(self, function: Any) -> str:
        return _dill_source(function)
