"""Bulk submissions: many calls as one task group, whose futures are made when needed."""

from __future__ import annotations

import gc
import io
import itertools
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.client.conftest import PATIENCE, Gate
from tests.client.service_world import RunningService, ThreadEndpoint

from flux_endpoint import (
    Client,
    Executor,
    ServiceError,
    ShellFunction,
    TaskExecutionFailed,
    TaskGroup,
    progress,
)
from flux_endpoint.client.bulk import sender, task_group
from flux_endpoint.client.bulk.calls import OPEN, UNKNOWN, Answer, CallStates
from flux_endpoint.client.bulk.task_ids import TaskIds
from flux_endpoint.client.results import TaskEnd
from flux_endpoint.client.threads import janitor
from waiting import until


def double(x: Any) -> Any:
    return 2 * x


def fail_if_odd(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


def task_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012x}"


# The states, without a service.


@pytest.mark.parametrize("numbers", [[1, 2, 3, 900], [900, 2, 1, 3], [7]])
def test_ids_are_found_in_any_order(numbers: list[int]) -> None:
    ids = TaskIds()
    ids.add([task_id(1000)])
    ids.add([task_id(each) for each in numbers])
    assert [ids.find(task_id(each)) for each in numbers] == list(range(1, len(numbers) + 1))
    assert [ids[index + 1] for index in range(len(numbers))] == [task_id(each) for each in numbers]
    assert ids.find(task_id(4)) is None
    assert ids.find("no id") is None
    with pytest.raises(IndexError):
        ids[len(ids)]


def test_an_end_may_come_before_its_call_is_known() -> None:
    calls = CallStates()
    calls.begin()
    calls.end(task_id(2), Answer(TaskEnd(task_id(2), "two")))
    calls.end(task_id(9), Answer(TaskEnd(task_id(9), "of another program")))
    calls.add([task_id(1), task_id(2)])
    assert list(calls.ended_from(0)) == [1]
    assert not calls.are_over
    calls.complete()
    calls.end(task_id(1), Answer(TaskEnd(task_id(1), "one")))
    calls.end(task_id(1), Answer(TaskEnd(task_id(1), "again")))
    assert calls.are_over
    assert list(calls.ended_from(0)) == [1, 0]
    first = calls.take(0)
    assert first is not None
    assert first.value == "one"
    assert calls.take(0) is None  # once


def test_ends_beyond_the_bound_are_not_kept() -> None:
    calls = CallStates(max_kept=3000)
    calls.add([task_id(each) for each in range(4)])
    for each in range(4):
        calls.end(task_id(each), Answer(TaskEnd(task_id(each), "value")))
    assert [calls.is_kept(index) for index in range(4)] == [True, True, False, False]
    assert calls.are_over


def test_calls_of_an_earlier_program_may_have_ended() -> None:
    calls = CallStates()
    calls.add([task_id(each) for each in range(3)], UNKNOWN)
    calls.end(task_id(1), None)
    calls.still_open([0, 1])
    assert calls.in_state(OPEN, 9) == [0]
    assert calls.in_state(UNKNOWN, 9) == [2]
    assert not calls.is_kept(1)
    assert not calls.wait_for_end(2, 0)


def test_early_ends_beyond_the_bound_are_not_kept() -> None:
    calls = CallStates(max_kept=3000)
    calls.begin()
    ends = [Answer(TaskEnd(task_id(each), "value")) for each in range(9)]
    before = [sys.getrefcount(each) for each in ends]
    for each in (0, 0, 1, 2, 8):
        calls.end(task_id(each), ends[each])
    after = [sys.getrefcount(each) for each in ends]
    assert [more - less for more, less in zip(after, before, strict=True)] == [1, 1] + [0] * 7
    calls.add([task_id(each) for each in range(3)])
    assert list(calls.ended_from(0)) == [0, 1, 2]
    assert [calls.is_kept(index) for index in range(3)] == [True, True, False]
    assert not calls.complete()


# With a server in place of the service.


def test_calls_are_sent_in_few_requests(
    service: Any, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_group, "_QUEUE_TIMEOUT", 0.01)  # no broker
    group = executor.bulk_submit(double, range(5000))
    assert len(group) == 5000
    sizes = [
        sum(len(its) for its in request.body["tasks"].values()) for request in service.submissions()
    ]
    assert sizes == [128, 2048, 2048, 776]
    assert len(service.seen("/v3/functions")) == 1
    assert {request.body["task_group_id"] for request in service.submissions()} == {
        group.task_group_id
    }
    assert group.task_group_id != str(executor.task_group_id)
    assert executor.task_count_submitted == 5000
    for task in service.groups[group.task_group_id]:
        service.ended(task, 7)
    assert {each.result() for each in executor.task_group(group.task_group_id)[::1000]} == {7}


def test_the_iterables_are_read_as_fast_as_the_service_takes_the_calls(
    service: Any, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_group, "_QUEUE_TIMEOUT", 0.01)
    monkeypatch.setattr(sender, "MAX_CALLS", 10)
    monkeypatch.setattr(task_group, "MAX_CALLS", 10)
    monkeypatch.setattr(task_group, "FIRST_CALLS", 10)
    gate = Gate(service)
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        for read in itertools.count(1):
            if read == 45:  # one request is being sent, two wait, and the next is full
                raise AssertionError("read too far")
            if read == 31:
                assert gate.reached.wait(PATIENCE)
                raise KeyboardInterrupt
            yield read

    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            executor.bulk_submit(double, endless())
    finally:
        gate.open.set()
    (note,) = caught.value.__notes__
    assert "0 of its calls were submitted, and 10 more may have been" in note
    assert ".task_group('" in note
    assert read == 31


def test_a_refusal_says_what_was_submitted(
    service: Any, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_group, "_QUEUE_TIMEOUT", 0.01)

    def react(request: Any) -> Any:
        if request.path.endswith("/submit") and len(service.submissions()) == 2:
            return 403, {"status": "Failed", "code": "FORBIDDEN", "reason": "enough"}
        return None

    service.react = react
    with pytest.raises(ServiceError, match="enough") as caught:
        executor.bulk_submit(double, range(10_000))
    (note,) = caught.value.__notes__
    assert "128 of its calls were submitted" in note
    assert ".task_group('" in note


def test_calls_may_wait_for_tasks(
    service: Any, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_group, "_QUEUE_TIMEOUT", 0.01)
    needed = executor.submit(double, 1)
    executor.bulk_submit(double, [5, needed, 10])
    (needs,) = service.submissions()[-1].body["needs"].values()
    assert needs == [None, {"values": [needed.task_id]}, None]


def test_waiting_asks_for_old_calls_no_longer_than_it_may(service: Any, executor: Executor) -> None:
    ids = [task_id(each) for each in range(300)]
    group_id = "00000000-0000-4000-8000-00000000000b"
    service.groups[group_id] = ids
    for each in ids:
        service.ended(each, 7)
    group = executor.task_group(group_id)
    assert not group.wait(0)
    assert len(service.seen("/v2/batch_status")) == 1
    assert group.wait()


def test_a_task_that_can_not_be_ended_keeps_no_other_from_its_end(
    service: Any, executor: Executor
) -> None:
    ids = [task_id(each) for each in range(30)]
    group_id = "00000000-0000-4000-8000-00000000000d"
    service.groups[group_id] = ids

    def react(request: Any) -> Any:
        if request.path.startswith("/v3/tasks?"):
            return 200, {"tasks": [{"task_id": each} for each in ids]}
        if request.path == f"/v2/tasks/{ids[0]}/kill":
            return 409, {"status": "Failed", "code": "KILL_NOT_SUPPORTED", "reason": "too old"}
        return None

    service.react = react
    with pytest.raises(ServiceError, match="too old"):
        executor.task_group(group_id).cancel()
    assert {each.path for each in service.seen("/kill")} == {f"/v2/tasks/{i}/kill" for i in ids}


def test_unusable_calls_are_refused(service: Any, executor: Executor) -> None:
    with pytest.raises(ValueError, match="at least one iterable"):
        executor.bulk_submit(double)
    with pytest.raises(TypeError, match="size"):
        executor.bulk_submit(ShellFunction("convert {image} {size}"), image=["a"])
    executor.cache = True
    with pytest.raises(ValueError, match="does not use the cache"):
        executor.bulk_submit(double, [1])
    executor.endpoint_id = None
    executor.cache = False
    with pytest.raises(ValueError, match="No endpoint_id set"):
        executor.bulk_submit(double, [1])
    assert not service.submissions()


# With a server in place of the service, and a broker.


@pytest.mark.rabbitmq
def test_a_future_is_resolved_although_nobody_has_its_group(
    service: Any, executor: Executor, queues: Any, messages: Any
) -> None:
    group_id = "00000000-0000-4000-8000-00000000000c"
    service.groups[group_id] = [task_id(1), task_id(2)]
    group = executor.task_group(group_id)
    future, stream = group[0], group._stream
    assert stream is not None
    del group
    gc.collect()
    released = threading.Event()
    janitor.leave(released.set)  # after the actions of the group's finalizer
    assert released.wait(PATIENCE)
    queues.publish(group_id, messages.value(future.task_id, 7))
    assert future.result(PATIENCE) == 7
    stream.over.result(PATIENCE)  # for the other call, nobody waits


@pytest.mark.rabbitmq
def test_calls_that_end_before_a_late_queue_and_their_ids_are_found(
    service: Any, executor: Executor, queues: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_group, "_QUEUE_TIMEOUT", 0.01)
    submitted = threading.Event()

    def react(request: Any) -> None:
        if request.path.startswith("/v2/taskgroup/"):
            assert submitted.wait(PATIENCE)
            queues.open(request)

    def run(ids: list[str]) -> None:
        for each in ids:
            service.ended(each, 7)
        submitted.set()
        (group,) = task_group._open
        assert group._stream is not None
        assert group._stream.opened.wait(PATIENCE)

    service.react, service.before_answer = react, run
    group = executor.bulk_submit(double, [1, 2])
    assert list(group.results(PATIENCE)) == [7, 7]


# With the real service and a broker.


@pytest.fixture
def real(running: RunningService, endpoint: ThreadEndpoint) -> Iterator[Executor]:
    with Executor(endpoint.id, Client(running.url, running.token)) as executor:
        yield executor


@pytest.mark.rabbitmq
def test_results_come_in_order_and_as_they_end(real: Executor) -> None:
    group = real.bulk_submit(pow, range(600), [2] * 600)
    assert isinstance(group, TaskGroup)
    assert list(group.results(PATIENCE)) == [i**2 for i in range(600)]
    assert {future.result() for future in group.as_completed(PATIENCE)} == {
        i**2 for i in range(600)
    }
    assert group[-1].result(PATIENCE) == 599**2
    assert [future.result(PATIENCE) for future in group[2:4]] == [4, 9]
    assert group[5] is group[5]
    with pytest.raises(IndexError):
        group[600]


@pytest.mark.rabbitmq
def test_a_future_made_early_is_resolved_when_its_call_ends(
    real: Executor, endpoint: ThreadEndpoint
) -> None:
    endpoint.may_run.clear()
    group = real.bulk_submit(double, range(300))
    future = group[299]
    assert not group.wait(0)
    with pytest.raises(TimeoutError, match=r"300 \(of 300\) calls unfinished"):
        next(group.as_completed(0))
    endpoint.may_run.set()
    assert future.result(PATIENCE) == 598
    assert group.wait(PATIENCE)
    assert [future.task_id for future in group] == [
        future.task_id for future in sorted(group, key=lambda each: each.task_id or "")
    ]


@pytest.mark.rabbitmq
def test_errors_are_those_of_their_calls(real: Executor) -> None:
    group = real.bulk_submit(fail_if_odd, number=range(10))
    shown = io.StringIO()
    shown.isatty = lambda: True  # type: ignore[method-assign]
    ended = list(progress(group, file=shown))
    assert len(ended) == 10
    assert sum(future.exception() is not None for future in ended) == 5
    assert "10/10 5 failed" in shown.getvalue()
    with pytest.raises(TaskExecutionFailed, match="1 is odd"):
        list(group.results(PATIENCE))


@pytest.mark.rabbitmq
def test_failed_calls_are_found_without_their_results(real: Executor) -> None:
    group = real.bulk_submit(fail_if_odd, range(10))
    assert group.wait(PATIENCE)
    until(lambda: group.report()["unfinished"] == 0)
    assert group.failed() == [1, 3, 5, 7, 9]
    assert group.unfinished() == []
    report = group.report()
    assert (report["tasks"], report["succeeded"], report["failed"]) == (10, 5, 5)
    assert [each["kind"] for each in report["failures"]] == ["ValueError"]
    assert group.cancel() == 0


@pytest.mark.rabbitmq
def test_a_group_is_read_by_a_later_program(
    real: Executor, endpoint: ThreadEndpoint, running: RunningService
) -> None:
    endpoint.may_run.clear()
    first = real.bulk_submit(double, range(200))
    with Executor(endpoint.id, Client(running.url, running.token)) as later:
        group = later.task_group(first.task_group_id)
        assert len(group) == 200
        ended = group.as_completed(PATIENCE)
        endpoint.may_run.set()
        assert sorted(future.result() for future in ended) == [2 * i for i in range(200)]
        again = later.task_group(first.task_group_id)
        assert list(again.results(PATIENCE)) == [2 * i for i in range(200)]


@pytest.mark.rabbitmq
def test_results_beyond_the_bound_are_requested_again(
    real: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CallStates.__init__, "__defaults__", (2000,))
    group = real.bulk_submit(double, range(300))
    assert group.wait(PATIENCE)
    assert sorted(each.result() for each in group.as_completed(PATIENCE)) == [
        2 * i for i in range(300)
    ]
