"""A worker's functions: made anew for each task, as if they were unpickled each time."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flux_endpoint.engine.task import FunctionCache
from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.serialize import ComputeSerializer, DillCode, PureSourceDill

SERIALIZER = ComputeSerializer(strategy_code=DillCode())


def typed(source: str, name: str = "f", **names: Any) -> Any:
    """Return a function as if a user had typed it: it is serialized by value."""
    namespace: dict[str, Any] = {"__name__": "typed", **names}
    exec(source, namespace)
    return namespace[name]


class Worker:
    """Reads a function for task after task."""

    def __init__(self, function: Any, serializer: ComputeSerializer = SERIALIZER) -> None:
        self.payload = serializer.serialize(function)
        self.reads = 0
        self._serializer = serializer
        self._cache = FunctionCache()

    def next(self) -> Any:
        return self._cache.get(self.payload, self._read)

    def _read(self, payload: str) -> Any:
        self.reads += 1
        return self._serializer.deserialize(payload)


def test_a_function_is_unpickled_once():
    worker = Worker(typed("def f(x, y=2):\n    'Adds.'\n    return x + y\n"))
    for _ in range(3):
        function = worker.next()
        assert function(1) == 3
        assert (function.__name__, function.__qualname__, function.__doc__) == ("f", "f", "Adds.")
        assert function.__module__ == "typed"
    assert worker.reads == 1


def test_another_function_is_unpickled():
    one, two = (Worker(typed(f"def f():\n    return {n}\n")) for n in (1, 2))
    cache = FunctionCache()
    assert [cache.get(w.payload, w._read)() for w in (one, two, one, one)] == [1, 2, 1, 1]
    assert (one.reads, two.reads) == (2, 1)


@pytest.mark.parametrize(
    ("source", "first"),
    [
        ("N = 0\ndef f():\n    global N\n    N += 1\n    return N\n", 1),
        ("def f():\n    global N\n    N = globals().get('N', 0) + 1\n    return N\n", 1),
        ("def f():\n    f.n = getattr(f, 'n', 0) + 1\n    return f.n\n", 1),
        ("def f(seen=[]):\n    seen.append(1)\n    return len(seen)\n", 1),
        ("def f(*, seen=[]):\n    seen.append(1)\n    return len(seen)\n", 1),
        ("L = []\ndef f():\n    L.append(1)\n    return len(L)\n", 1),
        ("push = [].append\ndef f():\n    push(1)\n    return len(push.__self__)\n", 1),
        ("def f(n: list = 1):\n    f.__annotations__['n'] = 2\n    return 1\n", 1),
        ("def f():\n    old, f.__defaults__ = f.__defaults__, (1,)\n    return old\n", None),
    ],
)
def test_changes_by_a_task_do_not_reach_the_next(source, first):
    worker = Worker(typed(source))
    assert [worker.next()() for _ in range(3)] == [first] * 3


def test_state_kept_in_a_closure_does_not_reach_the_next_task():
    source = "def make():\n    n = [0]\n    def f():\n        n[0] += 1\n        return n[0]\n"
    worker = Worker(typed(source + "    return f\n", "make")())
    assert [worker.next()() for _ in range(3)] == [1] * 3


def test_a_function_that_calls_itself_calls_itself():
    worker = Worker(typed("def f(n):\n    return 1 if n < 2 else n * f(n - 1)\n"))
    functions = [worker.next() for _ in range(3)]
    assert [function(5) for function in functions] == [120] * 3
    assert all(function.__globals__["f"] is function for function in functions)
    assert worker.reads == 1


def test_modules_and_builtins_in_its_globals_do_not_hinder():
    worker = Worker(
        typed("def f(x):\n    return m.floor(x) + len('a') + int(1)\n", m=math, len=len)
    )
    assert [worker.next()(2.5) for _ in range(3)] == [4] * 3
    assert worker.reads == 1


def test_an_importable_function_stays_the_modules_own():
    worker = Worker(typed)
    assert all(worker.next() is typed for _ in range(3))


def test_source_is_run_for_each_task():
    worker = Worker(math.floor)
    worker.payload = PureSourceDill.identifier + "anything"
    made = iter([typed("def f():\n    return 1\n"), typed("def f():\n    return 2\n")])
    worker._read = lambda _: next(made)
    assert [worker.next()() for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("kind", [ShellFunction, MPIFunction])
def test_a_command_function_serves_all_tasks(kind):
    worker = Worker(kind("true"), ComputeSerializer())
    assert worker.next() is worker.next()
    assert worker.reads == 1


def test_a_function_that_can_not_be_read_is_tried_again():
    worker = Worker(typed("def f():\n    return 1\n"))
    read, worker._read = worker._read, lambda payload: 1 / 0
    with pytest.raises(ZeroDivisionError):
        worker.next()
    worker._read = read
    assert worker.next()() == 1
