"""Serialization strategies: their base class and registry, and those for data and for functions."""

# ruff: noqa: D102 - what serialize and deserialize promise is said in SerializationStrategy

from __future__ import annotations

import base64
import binascii
import contextlib
import contextvars
import functools
import inspect
import io
import json
import pickle
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, ClassVar, Self

import dill
import dill.source

from flux_endpoint.errors import DeserializationError, ReadOnlyStrategyError, SerdeError
from flux_endpoint.serialize.state import State, state_by_name, state_by_value

#: Every buffer starts with this many characters that identify its strategy, the last a newline.
IDENTIFIER_LENGTH = 3


_Classes = Mapping[tuple[str, str], type]
#: Classes that dill and pickle write by their names, and whose instances only have attributes.
_simple: dict[tuple[str, str], type] = {}
_read_as: contextvars.ContextVar[_Classes | None] = contextvars.ContextVar("read_as", default=None)


class StrategyError(SerdeError, ValueError):
    """An object is not a strategy, or is a strategy of the wrong kind."""


class SerializationStrategy(ABC):
    """Converts objects of one kind to text and back.

    Defining a subclass with an `identifier` registers it. All users share one instance, so it must
    not keep state.
    """

    #: Two characters and a newline.
    identifier: ClassVar[str]
    #: Whether it is for callables; else it is for all other objects.
    for_code: ClassVar[bool]
    #: Whether it only reads the data of older releases; it can't be selected then.
    read_only: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "state" not in vars(cls):
            cls.state = SerializationStrategy.state  # type: ignore[method-assign]
        if hasattr(cls, "identifier"):
            _register(cls)

    @classmethod
    def get_cached_by_id(cls, identifier: str) -> SerializationStrategy | None:
        """Return the strategy with this identifier."""
        return _by_identifier.get(identifier)

    @classmethod
    def get_cached_by_class(cls, type_: type[SerializationStrategy]) -> SerializationStrategy:
        """Return the instance of `type_`."""
        return _by_identifier[type_.identifier]

    @classmethod
    def instance(cls) -> Self:
        """Return the instance of this class."""
        found = _by_identifier[cls.identifier]
        if not isinstance(found, cls):
            raise StrategyError(f"{cls.__name__} is not registered as {cls.identifier!r}")
        return found

    @abstractmethod
    def serialize(self, data: Any) -> str:
        """Return `data` as text that starts with `identifier`; may raise any error."""

    @abstractmethod
    def deserialize(self, payload: str) -> Any:
        """Return the object in `payload`; may raise any error."""

    def state(self, data: Any) -> State | None:  # noqa: ARG002 - for those that can tell
        """Return the state of `data`, see `serialize.state`; `None`: only serializing can tell.

        Subclasses do not inherit it, since they may write another text.
        """
        return None

    def chomp(self, payload: str) -> str:
        """Return `payload` without the identifier.

        Raises:
            DeserializationError: `payload` starts with another identifier.
        """
        if not payload.startswith(self.identifier):
            raise DeserializationError(
                f"buffer does not start with {self.identifier!r}, the identifier of "
                f"{type(self).__name__}, but with {payload[:IDENTIFIER_LENGTH]!r}"
            )
        return payload[IDENTIFIER_LENGTH:]


_by_identifier: dict[str, SerializationStrategy] = {}
_by_type: dict[type, SerializationStrategy] = {}


def _register(cls: type[SerializationStrategy]) -> None:
    identifier = cls.identifier
    if len(identifier) != IDENTIFIER_LENGTH:
        raise StrategyError(
            f"{cls.__name__}: identifier must be {IDENTIFIER_LENGTH} characters long, the last one "
            f"a newline; got {identifier!r}"
        )
    if identifier[-1] != "\n":
        raise StrategyError(
            f"{cls.__name__}: identifier must end with a newline character, got {identifier!r}"
        )
    if not isinstance(getattr(cls, "for_code", None), bool):
        raise StrategyError(f"{cls.__name__}: for_code must say whether it is for callables")
    existing = type(_by_identifier.get(identifier))
    # The same class again: a reloaded module, or a notebook cell that was run again.
    same = (existing.__module__, existing.__qualname__) == (cls.__module__, cls.__qualname__)
    if identifier in _by_identifier and not same:
        raise StrategyError(
            f"{cls.__name__}: identifier {identifier!r} is already used by {existing.__name__}"
        )
    _by_identifier[identifier] = cls()


def all_strategies() -> list[SerializationStrategy]:
    """Return all registered strategies."""
    return list(_by_identifier.values())


def prefer_for_type(type_: type, strategy: type[SerializationStrategy]) -> None:
    """Use `strategy` for objects of exactly `type_` if the user has selected no strategy."""
    _by_type[type_] = strategy.instance()


def preferred_strategy(type_: type) -> SerializationStrategy | None:
    """Return the strategy that objects of exactly `type_` prefer."""
    return _by_type.get(type_)


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
#: The bytes in a line of base64, and the largest pickle (bytes) whose base64 has several lines.
_LINE = 57
IN_LINES = 16 << 10
#: The most items of a container that is checked for other types.
_FEW = 64


def _is_plain(data: Any) -> bool:
    """Return whether `data` is plain, or a small container of plain values."""
    kind = type(data)
    if kind in _PLAIN:
        return True
    if kind not in (dict, list, tuple):
        is_simple = _simple.get((kind.__module__, kind.__qualname__)) is kind
        return is_simple and _is_plain(vars(data))
    if len(data) > _FEW:
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
    if _LINE < len(pickled) <= IN_LINES:
        return base64.encodebytes(pickled).decode()
    return binascii.b2a_base64(pickled).decode()


def dill_from_text(text: str) -> Any:
    """Return the object in `text`.

    Raises:
        DeserializationError: `text` is not base64. The object itself may raise anything else.
    """
    pickled = base64_bytes(text)
    try:  # a context would take as long as reading a small pickle
        return _PlainUnpickler(io.BytesIO(pickled)).load()
    except _NeedsDillError:  # raised before any of the pickle's code has run
        pass
    if not _read_as.get():
        return dill.loads(pickled)  # noqa: S301 - what this is for
    return _Unpickler(io.BytesIO(pickled)).load()


def base64_bytes(text: str) -> bytes:
    """Return the bytes in `text`.

    Raises:
        DeserializationError: it is not base64.
    """
    try:
        return binascii.a2b_base64(text)
    except ValueError as error:  # also for text that is not ASCII
        raise DeserializationError(f"the payload is not base64: {error}") from error


class DillDataBase64(SerializationStrategy):
    """Any picklable object, through dill, as base64. The default for data."""

    identifier = "00\n"
    for_code = False

    def serialize(self, data: Any) -> str:
        if type(data) is dict and not data:
            return _NO_KEYWORDS
        return self.identifier + dill_to_text(data)

    def deserialize(self, payload: str) -> Any:
        return {} if payload == _NO_KEYWORDS else dill_from_text(self.chomp(payload))


#: The keyword arguments of most calls.
_NO_KEYWORDS = DillDataBase64.identifier + dill_to_text({})


class JSONData(SerializationStrategy):
    """JSON values, as JSON: tuples become lists, keys become strings."""

    identifier = "11\n"
    for_code = False

    def serialize(self, data: Any) -> str:
        return self.identifier + json.dumps(data)

    def deserialize(self, payload: str) -> Any:
        return json.loads(self.chomp(payload))


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
