"""Explains why an object can't be serialized: which part of it, and where that is."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

#: The depth of the search, and the most parts of an object that are searched.
_DEPTH = 8
_PARTS = 200

_HINTS = {
    types.GeneratorType: "A generator stays where it is: make a list of it first, `list(...)`",
    types.AsyncGeneratorType: (
        "An asynchronous generator stays where it is: make a list of it first, "
        "`[item async for item in ...]` under `asyncio.run`"
    ),
    types.CoroutineType: (
        "A coroutine that nobody awaits: functions are called, not awaited; have a plain function "
        "return `asyncio.run(...)` of it"
    ),
}


def described(data: Any) -> str:
    """Return a description of `data` for messages."""
    if isinstance(data, type):
        return f"class '{data.__qualname__}'"
    name = getattr(data, "__name__", None)
    if callable(data) and isinstance(name, str):
        return f"function '{name}'"
    kind = type(data)
    prefix = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"an object of type '{prefix}{kind.__qualname__}'"


def plain(error: Exception) -> str:
    """Return type and text of `error`."""
    return f"{type(error).__name__}: {error}"


def reason(data: Any, error: Exception, serialize: Callable[[Any], object]) -> str:
    """Return why `serialize(data)` raised `error`, with the innermost part that raises, too."""
    path: list[str] = []
    with contextlib.suppress(Exception):  # an object may fail to be inspected
        while len(path) < _DEPTH and not isinstance(error, RecursionError):
            found = _bad_part(data, serialize)
            if found is None:
                break
            name, data, error = found
            path.append(name)
    text = plain(error)
    if path:
        text += f" (found at: {' > '.join(path)})"
    hint = _HINTS.get(type(data))
    return f"{text}. {hint}" if hint else text


def _bad_part(data: Any, serialize: Callable[[Any], object]) -> tuple[str, Any, Exception] | None:
    for name, part in itertools.islice(_parts(data), _PARTS):
        try:
            serialize(part)
        except Exception as error:  # noqa: BLE001 - whatever an object raises when it is pickled
            return name, part, error
    return None


def _parts(data: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield f"[{_short(key)}]", value
        yield from ((f"key {_short(key)}", key) for key in data)
    elif isinstance(data, (list, tuple, set, frozenset)):
        yield from ((f"[{index}]", item) for index, item in enumerate(data))
    elif isinstance(data, types.FunctionType):
        yield from _function_parts(data)
    elif isinstance(data, types.MethodType):
        yield "its object", data.__self__
    elif isinstance(data, functools.partial):
        yield "partial's function", data.func
        yield "partial's arguments", data.args
        yield "partial's keywords", data.keywords
    elif not isinstance(data, (type, types.ModuleType)):
        yield from ((f".{name}", value) for name, value in getattr(data, "__dict__", {}).items())


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    bound = inspect.getclosurevars(function)
    yield from ((f"closure variable '{name}'", value) for name, value in bound.nonlocals.items())
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty:
            yield f"default of '{name}'", parameter.default
    yield from ((f"attribute '{name}'", value) for name, value in vars(function).items())
    yield from ((f"global '{name}'", value) for name, value in bound.globals.items())


def _short(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 40 else f"{text[:37]}..."
