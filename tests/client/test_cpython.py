"""CPython's own tests of `concurrent.futures`, run on our futures and our Executor.

They come with many installations of Python; where they don't, `CPYTHON_TESTS` may name the
directory `test` of one that has them. They are loaded, never copied.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tests.client.service_world import RunningService, ThreadEndpoint

from flux_endpoint import Client, ComputeFuture, Executor

NAME = "test_concurrent_futures"

#: Tests of executors that ours differs from on purpose.
DIFFERENT = {
    "test_max_workers_negative": "an Executor has no workers of its own",
    "test_map_exception": "an error at the endpoint is raised as TaskExecutionFailed",
    "test_map_timeout": "the service's part takes longer than the test's five seconds at times",
    "test_no_stale_references": "a closure over an event can't be sent to another process",
    "test_free_reference": "the test's object has no class that can be sent",
    "test_free_reference_yielded_future": "it makes futures of the standard class",
    "test_pending_calls_race": "a closure over an event can't be sent to another process",
    "test_shutdown_race_issue12456": "it wants a certain number of workers",
}


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dill looks functions up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cpython() -> dict[str, ModuleType]:
    """The modules that have the tests, by their names."""
    place = Path(os.environ.get("CPYTHON_TESTS", Path(os.__file__).parent / "test")) / NAME
    if place.with_suffix(".py").is_file():
        return {NAME: _load(NAME, place.with_suffix(".py"))}
    if not place.is_dir():
        pytest.skip(f"not run: no CPython tests of concurrent.futures at {place}: CPYTHON_TESTS")
    parts = ("util", "test_future", "executor", "test_wait", "test_as_completed")
    return {part: importlib.import_module(f"test.{NAME}.{part}") for part in parts}


def classes(cpython: dict[str, ModuleType], *names: str) -> Iterator[type]:
    for name in names:
        yield next(vars(module)[name] for module in cpython.values() if name in vars(module))


def failures(cases: list[type[unittest.TestCase]]) -> dict[str, str]:
    """Run the tests of some classes; return the last line of each that fails, by its name."""
    result = unittest.TestResult()
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []  # the tests look at what is logged without any
    try:
        for case in cases:
            unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    finally:
        root.handlers = handlers
    assert result.testsRun > 2
    bad = [*result.failures, *result.errors]
    return {test.id().rpartition(".")[2]: text.splitlines()[-1] for test, text in bad}


def test_cpythons_tests_of_futures_pass(
    cpython: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {
        "PENDING_FUTURE": {"state": "PENDING"},
        "RUNNING_FUTURE": {"state": "RUNNING"},
        "CANCELLED_FUTURE": {"state": "CANCELLED"},
        "CANCELLED_AND_NOTIFIED_FUTURE": {"state": "CANCELLED_AND_NOTIFIED"},
        "EXCEPTION_FUTURE": {"state": "FINISHED", "exception": OSError()},
        "SUCCESSFUL_FUTURE": {"state": "FINISHED", "result": 42},
    }
    ours = type("Future", (ComputeFuture,), {})  # some look at the class's name
    for module in cpython.values():
        if hasattr(module, "Future"):
            monkeypatch.setattr(module, "Future", ours)
    for module in cpython.values():
        for name, how in states.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, module.create_future(**how))
    assert failures(list(classes(cpython, "FutureTests"))) == {}


@pytest.mark.rabbitmq
@pytest.mark.parametrize("name", ["ExecutorTest", "WaitTests", "AsCompletedTests"])
def test_cpythons_tests_of_executors_pass(
    cpython: dict[str, ModuleType], running: RunningService, endpoint: ThreadEndpoint, name: str
) -> None:
    client = Client(running.url, running.token)

    class OnOurs(unittest.TestCase):
        def setUp(self) -> None:
            self.executor = Executor(endpoint.id, client)
            self.executor_type = Executor

        def tearDown(self) -> None:
            self.executor.shutdown(wait=True)

    tests = classes(cpython, name)
    wrong = failures([type(f"Our{each.__name__}", (each, OnOurs), {}) for each in tests])
    assert {name: text for name, text in wrong.items() if name not in DIFFERENT} == {}
