"""The state of a callable: never the same for what is serialized to another text."""

from __future__ import annotations

import functools
import json
import sys
import types
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Optional

import dill
import pytest

from flux_endpoint import ComputeSerializer, MPIFunction, ShellFunction
from flux_endpoint.serialize import (
    AllCodeStrategies,
    CombinedCode,
    DillCode,
    PureSourceTextInspect,
    same_state,
)

SERIALIZER = ComputeSerializer()


def found_here(x: int = 1) -> int:
    return x


def make(scale: Any = 3) -> Callable[..., Any]:
    def scaled(x: int = 1, *, shift: float = 0.0) -> float | None:
        """Scale x."""
        return scale * x + shift

    return scaled


def decorated() -> Callable[..., Any]:
    inner = make()

    @functools.wraps(inner)
    def wrapper(*args: Any) -> Any:
        return inner(*args)

    return wrapper


def recursive() -> Callable[..., Any]:
    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    return factorial


def annotated(kind: Any) -> Callable[..., Any]:
    function = make()
    function.__annotations__ = {"x": kind}
    return function


def executed(*lines: str) -> Any:
    """Return a function whose namespace is no module's."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("\n".join([*lines, "def same(x): return x"]), space)
    return space["same"]


@pytest.mark.parametrize(
    "function",
    [
        make(),
        make((1, "two", (3.0, None))),
        make(json.dumps),
        make(make()),
        decorated(),
        recursive(),
        executed("unit = 7", "def other(): pass"),
        annotated(list[int]),
        annotated(Optional[Decimal]),  # noqa: UP045 - another type than the next
        annotated(int | str),
        functools.partial(make(), 2, shift=1.0),
        found_here,
        json.dumps,
        len,
        ShellFunction("echo {x}"),
        MPIFunction("app", walltime=2.0),
    ],
)
def test_an_unchanged_callable_is_recognized_without_serializing(function: Any) -> None:
    assert same_state(SERIALIZER.state(function), SERIALIZER.state(function))


class Model:
    def __init__(self) -> None:
        self.weight = 1

    def __call__(self, x: int) -> int:
        return self.weight * x

    def run(self, x: int) -> int:
        return self(x)


class ByValue(str):
    __qualname__ = "Elsewhere.ByValue"


class UserStrategy(DillCode):
    """Writes more than its parent does."""

    identifier = "zs\n"


class UserSerializer(ComputeSerializer):
    """Writes what it likes."""

    def serialize(self, data: Any) -> str:
        return super().serialize(data)


@pytest.mark.parametrize(
    "function",
    [
        make([1]),
        make({"a": 1}),
        make(([1],)),
        make(Model()),
        make(ByValue("x")),
        make(types),
        make(type("Local", (), {})),
        annotated(type("Local", (), {})),
        annotated(list[type("Local", (), {})]),  # type: ignore[misc]
        functools.partial(make(), [2]),
        executed("unit = [7]"),
        executed(*(f"x{number} = 1" for number in range(20))),
        Model(),
        Model().run,
        [].append,
    ],
)
def test_callables_that_may_change_unnoticed_have_no_state(function: Any) -> None:
    assert SERIALIZER.state(function) is None


def test_strategies_and_serializers_of_a_user_have_no_state_unless_they_say_so() -> None:
    assert ComputeSerializer(strategy_code=UserStrategy.instance()).state(make()) is None
    assert UserSerializer().state(make()) is None


def set_cell(function: Any, value: Any) -> None:
    function.__closure__[0].cell_contents = value


CHANGES: dict[str, Callable[[Any], None]] = {
    "defaults": lambda f: setattr(f, "__defaults__", (9,)),
    "no defaults": lambda f: setattr(f, "__defaults__", None),
    "an equal default of another type": lambda f: setattr(f, "__defaults__", (True,)),
    "keyword defaults": lambda f: f.__kwdefaults__.update(shift=2.0),
    "the sign of zero": lambda f: f.__kwdefaults__.update(shift=-0.0),
    "a closure variable": lambda f: set_cell(f, 5),
    "a closure variable that is a list now": lambda f: set_cell(f, [5]),
    "an attribute": lambda f: setattr(f, "unit", "m"),
    "code": lambda f: setattr(f, "__code__", make().__code__.replace(co_name="other")),
    "name": lambda f: setattr(f, "__name__", "other"),
    "qualified name": lambda f: setattr(f, "__qualname__", "other"),
    "module": lambda f: setattr(f, "__module__", "json"),
    "docstring": lambda f: setattr(f, "__doc__", "Other."),
    "annotations": lambda f: f.__annotations__.update(x=float),
}


@pytest.mark.parametrize(
    "strategy", [DillCode, PureSourceTextInspect, CombinedCode, AllCodeStrategies]
)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "wrap", [lambda f: f, make, functools.partial], ids=["itself", "in a closure", "partial"]
)
def test_every_change_of_a_function_is_noticed(change: str, strategy: Any, wrap: Any) -> None:
    serializer = ComputeSerializer(strategy_code=strategy)
    inner = make()
    function = wrap(inner)
    before = serializer.state(function)
    assert before is not None
    CHANGES[change](inner)
    assert not same_state(before, serializer.state(function))


@pytest.mark.parametrize(
    "option", ["cmd", "stdout", "stderr", "walltime", "snippet_lines", "__name__", "return_dict"]
)
def test_every_change_of_a_command_function_is_noticed(option: str) -> None:
    function = ShellFunction("echo {x}")
    before = SERIALIZER.state(function)
    setattr(function, option, 17)
    assert not same_state(before, SERIALIZER.state(function))


def test_a_function_that_its_module_has_no_more_travels_by_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function = found_here
    before = SERIALIZER.state(function)
    monkeypatch.setattr(sys.modules[__name__], "found_here", None)
    after = SERIALIZER.state(function)
    assert after is not None
    assert not same_state(before, after)


def test_a_class_in_an_annotation_that_its_module_has_no_more_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function = annotated(Model)
    assert SERIALIZER.state(function) is not None
    monkeypatch.setattr(sys.modules[__name__], "Model", None)
    assert SERIALIZER.state(function) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda space: space.update(unit=8),
        lambda space: space.update(more=1),
        lambda space: space.pop("unit"),
        lambda space: space.update(unit=space.pop("unit")),  # it is the last one now
        lambda space: space["other"].__dict__.update(unit=1),
        lambda space: space.update(__builtins__={}),
    ],
)
def test_every_change_of_the_namespace_of_an_executed_function_is_noticed(change: Any) -> None:
    function = executed("unit = 7", "def other(): pass")
    before = SERIALIZER.state(function)
    assert before is not None
    assert same_state(before, SERIALIZER.state(function))
    change(function.__globals__)
    assert not same_state(before, SERIALIZER.state(function))


def test_globals_that_dill_is_told_to_take_along_are_not_overlooked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(dill.settings, "recurse", True)
    assert SERIALIZER.state(make()) is None
