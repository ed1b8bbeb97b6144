"""Makes a worker's latest function anew for each task, without unpickling it each time."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.functions.official import OfficialMPIFunction, OfficialShellFunction
from flux_endpoint.serialize import DillCode

#: Exact types of values that no task can change.
_IMMUTABLE = frozenset({bool, bytes, complex, float, int, str, type(None)})
_COMMANDS = frozenset({ShellFunction, MPIFunction, OfficialShellFunction, OfficialMPIFunction})


class FunctionCache:
    """The latest function that can be remade.

    A task may change a function's attributes, global variables and default values. The next task
    must not see this, so each task gets a new function with new globals, as if it were unpickled
    again. That is possible for a function whose parts are all immutable, as most are. A command
    function runs no code of the user's in this process, so one object serves all tasks.
    """

    def __init__(self) -> None:
        self._payload = ""
        #: Makes its function; `None`: it must be read again.
        self._make: Callable[[], Any] | None = None

    def get(self, payload: str, read: Callable[[str], Any]) -> Any:
        """Return the function in `payload`.

        Args:
            payload: a serialized function.
            read: deserializes it, if it can't be remade; may raise any error.
        """
        if self._make is not None and self._payload == payload:
            return self._make()
        self._make = None
        function = read(payload)
        if type(function) in _COMMANDS:
            self._make = lambda: function
        elif payload.startswith(DillCode.identifier):  # source is run for each task: it may compute
            recipe = _recipe_of(function)
            self._make = None if recipe is None else recipe.make
        self._payload = payload
        return function


@dataclass(frozen=True, slots=True)
class _Recipe:
    """The parts of a function, since a task may change the function itself."""

    code: CodeType
    name: str
    qualname: str
    module: str
    doc: str | None
    defaults: tuple[Any, ...] | None
    #: The worker's `__main__`, which all functions from a user's `__main__` share.
    shared_globals: dict[str, Any] | None
    own_globals: dict[str, Any]
    #: Names in `own_globals` of the function itself.
    names: tuple[str, ...]

    def make(self) -> FunctionType:
        """Return a new function."""
        variables = self.shared_globals
        if variables is None:
            variables = self.own_globals.copy()
        made = FunctionType(self.code, variables, self.name, self.defaults)
        made.__qualname__, made.__module__, made.__doc__ = self.qualname, self.module, self.doc
        for name in self.names:
            variables[name] = made
        return made


def _recipe_of(function: Any) -> _Recipe | None:
    """Return how to remake a function that no task has called yet; `None` if that may differ."""
    if type(function) is not FunctionType or not _has_immutable_parts(function):
        return None
    shared, own = None, function.__globals__
    names = tuple(name for name, value in own.items() if value is function)
    if own is vars(sys.modules["__main__"]):
        shared, own, names = own, {}, ()
    elif own is getattr(sys.modules.get(function.__module__), "__dict__", None):
        return None  # it was pickled by its name: the module's own function is meant
    if not all(name in names or _is_constant(value) for name, value in own.items()):
        return None
    return _Recipe(
        function.__code__,
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        function.__defaults__,
        shared,
        own.copy(),
        names,
    )


def _has_immutable_parts(function: FunctionType) -> bool:
    others = (
        function.__closure__,
        function.__kwdefaults__,
        function.__annotations__,
        function.__dict__,
        getattr(function, "__type_params__", ()),
    )
    return not any(others) and all(type(v) in _IMMUTABLE for v in function.__defaults__ or ())


def _is_constant(value: Any) -> bool:
    kind = type(value)
    if kind is BuiltinFunctionType:  # others are methods of an object that may change
        return isinstance(value.__self__, ModuleType)
    if kind is type:
        return vars(builtins).get(value.__name__) is value
    return kind in _IMMUTABLE or kind is ModuleType or value is vars(builtins)
