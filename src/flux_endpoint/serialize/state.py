"""Tells, without serializing, whether a function would be serialized to the same text again.

A *state* is a tuple of the objects that determine the text. If the objects of two states of one
function are identical, one by one, the text is the same, provided that the caller keeps the objects
alive between the comparisons. If anything that determines the text could change in place (a list,
an instance), there is no state: only serializing can tell.
"""

from __future__ import annotations

import builtins
import functools
import sys
import types
import typing
from operator import is_
from typing import Any, Final

import dill

State = tuple[object, ...]

#: Types of immutable objects that only refer to immutable objects.
_ATOMS: Final = frozenset(
    {bool, int, float, complex, str, bytes, type(None), type(...), types.CodeType}
)
#: The most functions that may refer to each other, and the deepest tuples, for a check to pay off.
_MAX_FUNCTIONS: Final = 8
_DEEPEST: Final = 4
#: The most variables of a function's own namespace, as `exec` makes it, for a check to pay off.
_MAX_GLOBALS: Final = 16
#: CPython's `Py_TPFLAGS_HEAPTYPE`: a class that was created at run time, and may change.
_HEAP_TYPE: Final = 1 << 9
#: The components of annotations, besides classes.
_FORMS: Final = (typing.Union, typing.Literal, typing.Optional, typing.Any)
_BY_NAME: Final = object()
#: Separates parts of different kinds, so that they can't be confused.
_NEXT: Final = object()


class _Unsure(Exception):  # noqa: N818 - no error: it ends the look
    """Something may change unnoticed."""


def same_state(one: State | None, other: State | None) -> bool:
    """Return whether both are states of the same text."""
    return (
        one is not None
        and other is not None
        and len(one) == len(other)
        and all(map(is_, one, other))
    )


def state_by_name(function: object) -> State | None:
    """Return the state of a function that dill refers to by its name."""
    if type(function) not in {types.FunctionType, types.BuiltinFunctionType}:
        return None
    return (_BY_NAME, function) if _is_found(function) else None


def state_by_value(function: object) -> State | None:
    """Return the state of a function or `partial`, with everything that travels with it."""
    if dill.settings["recurse"] or type(function) not in {types.FunctionType, functools.partial}:
        return None
    parts: list[object] = []
    try:
        _add(function, parts, [])
    except _Unsure:
        return None
    return tuple(parts)


def _is_found(value: Any) -> bool:
    """Return whether `value` can be found by its name in its module, so that its name travels."""
    module = value.__module__
    if type(module) is not str or module == "__main__":
        return False
    found: Any = sys.modules.get(module)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _add_function(
    function: types.FunctionType, parts: list[object], seen: list[types.FunctionType]
) -> None:
    parts.append(function)
    if function in seen:
        return
    seen.append(function)
    space, module = function.__globals__, function.__module__
    if len(seen) > _MAX_FUNCTIONS or getattr(function, "__type_params__", None):
        raise _Unsure
    parts += (
        _is_found(function),
        function.__code__,
        function.__name__,
        function.__qualname__,
        module,
        space,
    )
    for value in (function.__doc__, function.__defaults__):
        _add(value, parts, seen)
    for mapping in (function.__kwdefaults__, _annotations(function), function.__dict__):
        _add_items(mapping, parts, seen)
    if getattr(sys.modules.get(module), "__dict__", None) is not space:  # it travels, too
        if len(space) > _MAX_GLOBALS:
            raise _Unsure
        _add_items(space, parts, seen)
    for cell in function.__closure__ or ():
        try:
            _add(cell.cell_contents, parts, seen)
        except ValueError:  # a cell without a value
            raise _Unsure from None


def _annotations(function: types.FunctionType) -> dict[str, Any]:
    try:
        return function.__annotations__
    except Exception:  # noqa: BLE001 - newer Pythons evaluate them only now
        raise _Unsure from None


def _add(value: Any, parts: list[object], seen: list[types.FunctionType]) -> None:
    kind = type(value)
    if kind in _ATOMS:
        parts.append(value)
    elif kind is types.FunctionType:
        _add_function(value, parts, seen)
    elif kind is functools.partial:
        parts.append(value)
        for part in (value.func, value.args):
            _add(part, parts, seen)
        for mapping in (value.keywords, value.__dict__):
            _add_items(mapping, parts, seen)
    elif value is vars(builtins) or never_changes(value):  # the former travels by its name
        parts.append(value)
    else:
        raise _Unsure


def _add_items(
    mapping: dict[str, Any] | None, parts: list[object], seen: list[types.FunctionType]
) -> None:
    parts.append(_NEXT)
    for key, value in (mapping or {}).items():
        _add(key, parts, seen)
        _add(value, parts, seen)


def never_changes(value: Any, depth: int = 0) -> bool:
    """Return whether `value` is serialized to the same text for as long as it exists."""
    kind = type(value)
    if kind in _ATOMS or any(value is form for form in _FORMS):
        return True
    if depth == _DEEPEST:
        return False
    if kind is types.BuiltinFunctionType:
        return _is_found(value)
    if isinstance(value, type):
        # Named tuples travel with the names of their fields.
        return not value.__flags__ & _HEAP_TYPE or (
            value.__bases__ != (tuple,) and _is_found(value)
        )
    if kind is not tuple and kind is not frozenset:  # `list[int]`, `int | None`
        value = (typing.get_origin(value), *typing.get_args(value))
        if len(value) == 1:
            return False
    return all(never_changes(item, depth + 1) for item in value)
