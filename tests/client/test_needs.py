"""Tasks that need others: what the client sends, and which tasks never get there."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from flux_endpoint import ComputeFuture, DependencyFailed, Executor
from flux_endpoint.client.needs import Needs, collected_inputs, take_after
from flux_endpoint.client.results import from_document, load
from flux_endpoint.errors import DeserializationError, SerializationError
from flux_endpoint.functions import ShellFunction
from flux_endpoint.functions.inputs import task_input, task_inputs

TIMEOUT = 20


def add(a: Any, b: Any = 0) -> Any:
    return a + b


def test_a_future_anywhere_in_the_arguments_is_a_reference() -> None:
    first, second = ComputeFuture("1"), ComputeFuture("2")
    with collected_inputs() as found:
        pickled = pickle.dumps({"x": [second, (first, second)]})
    assert found == [second, first]
    with task_inputs(["two", "one"]):
        assert pickle.loads(pickled) == {"x": ["two", ("one", "two")]}


def test_a_result_that_was_not_sent_along_is_an_error() -> None:
    with task_inputs([1]), pytest.raises(DeserializationError, match="1 results were sent along"):
        task_input(1)


@pytest.mark.parametrize("make", [pickle.dumps, copy.copy])
def test_a_future_can_not_be_pickled_elsewhere(make: Any) -> None:
    with pytest.raises(TypeError, match="pass it as an argument"):
        make(ComputeFuture("1"))


def test_after_is_taken_unless_the_function_has_it() -> None:
    futures = [ComputeFuture("1")]

    def has_after(after: Any) -> Any:
        return after

    for fn, value, taken in [
        (add, futures, True),
        (pow, tuple(futures), True),
        (ShellFunction("echo {x}"), futures, True),
        (has_after, futures, False),
        (ShellFunction("echo {after[0]}"), futures, False),
        (add, [], False),
        (add, [1], False),
        (add, "now", False),
    ]:
        kwargs = {"b": 1, "after": value}
        assert list(take_after(fn, kwargs, ComputeFuture)) == (futures if taken else [])
        assert ("after" in kwargs) is not taken


def test_a_task_waits_for_a_limited_number() -> None:
    many = [ComputeFuture(str(number)) for number in range(1001)]
    with collected_inputs(), pytest.raises(ValueError, match="more than 1000 futures"):
        pickle.dumps(many)
    with pytest.raises(ValueError, match="has 1001 futures, at most 1000"):
        take_after(add, {"after": many}, ComputeFuture)


def test_needs_reach_the_service(service: Any, executor: Executor) -> None:
    first = executor.submit(add, 1)
    second = executor.submit(add, 2)
    third = executor.submit(add, [first], b=first, after=[second])
    assert third.wait_submitted(TIMEOUT)
    bodies = [each.body for each in service.submissions()]
    needs = [each for body in bodies for its in body.get("needs", {}).values() for each in its]
    assert needs[-1] == {"values": [first.task_id], "after": [second.task_id]}
    assert not any(needs[:-1])


def test_a_need_that_was_never_submitted_fails_the_task(service: Any, executor: Executor) -> None:
    lost = ComputeFuture()
    lost._events = executor._streams
    lost.set_exception(SerializationError("too large"))
    future = executor.submit(add, lost)
    with pytest.raises(DependencyFailed, match="never submitted") as caught:
        future.result(TIMEOUT)
    assert caught.value.task_id is None


def test_the_failed_task_is_named_also_by_a_document() -> None:
    needed = "01a2208d-1e2c-7000-915e-6f51f2d6b084"
    text = f"DependencyFailed: task {needed}, which this task needs, failed: ValueError: no"
    end = from_document({"task_id": "t", "status": "failed", "exception": text})
    assert end is not None
    with pytest.raises(DependencyFailed, match=r"^task .* ValueError: no$") as caught:
        load(end, None)
    assert caught.value.task_id == needed


def test_no_needs_are_false() -> None:
    assert not Needs()
    assert Needs(after=(ComputeFuture("1"),))
