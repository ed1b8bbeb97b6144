"""An Executor with `cache`: calls that succeeded before get their results."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.client.conftest import ENDPOINT, Gate

from flux_endpoint import Client, Executor, ShellFunction, ShellResult, TaskExecutionFailed
from flux_endpoint.client import cache
from flux_endpoint.data import SharedDirectory
from flux_endpoint.errors import DeserializationError
from waiting import until

TIMEOUT = 30


@pytest.fixture
def executor(executor: Executor) -> Executor:
    executor.cache = True
    return executor


def run(service: Any, executor: Executor, fn: Any, *args: Any, **kwargs: Any) -> str:
    """Submit a call that is not known yet, and let it be noted; return its task."""
    before = len(service.cache)
    future = executor.submit(fn, *args, **kwargs)
    task = future.wait_submitted(TIMEOUT)
    assert task is not None
    assert not future.is_cached
    until(lambda: len(service.cache) == before + 1)
    return task


def test_a_call_that_was_made_before_gets_its_result_at_once(
    service: Any, executor: Executor, client: Client
) -> None:
    first = run(service, executor, pow, 2, 10)
    service.ended(first, 1024)
    again = executor.submit(pow, 2, 10)
    assert again.result(TIMEOUT) == 1024
    assert (again.is_cached, again.task_id) == (True, first)
    other = Executor(executor.endpoint_id, client, cache=True)  # e.g. of another program
    assert other.submit(pow, 2, 10).result(TIMEOUT) == 1024
    assert len(service.submissions()) == 1


def test_a_call_that_differs_in_anything_is_run(service: Any, executor: Executor) -> None:
    service.ended(run(service, executor, pow, 2, 10), 1024)
    run(service, executor, pow, 2, 11)
    run(service, executor, divmod, 2, 10)
    executor.cache = "data of May"
    run(service, executor, pow, 2, 10)
    executor.cache = True
    executor.resource_specification = {"num_ranks": 2}
    run(service, executor, pow, 2, 10)
    executor.resource_specification = None
    executor.endpoint_id = "00000000-0000-4000-8000-00000000000f"
    run(service, executor, pow, 2, 10)
    for options in ({"stdin": "10"}, {"cwd": "x"}, {"env": {"X": "1"}}, {"env": {"X": "2"}}):
        run(service, executor.using(retries=1, **options), pow, 2, 10)
    command = ShellFunction("echo {x}")
    run(service, executor, command, x=1)
    command.cmd = "echo -n {x}"
    run(service, executor, command, x=1)
    assert len(service.submissions()) == len(service.cache) == 12


def test_retries_and_time_limits_do_not_matter(service: Any, executor: Executor) -> None:
    first = run(service, executor, pow, 2, 10)
    service.ended(first, 1024)
    again = executor.using(retries=2, time_limit=60).submit(pow, 2, 10)
    assert again.result(TIMEOUT) == 1024
    assert again.is_cached


@pytest.mark.parametrize("return_dict", [False, True])
def test_a_command_that_failed_is_run_again(
    service: Any, executor: Executor, *, return_dict: bool
) -> None:
    command = ShellFunction("test -f {path}", return_dict=return_dict)
    first = run(service, executor, command, path="/no/such")
    failed = ShellResult("test -f /no/such", "", "", 1)
    service.ended(first, vars(failed) if return_dict else failed)  # as of an official endpoint
    again = executor.submit(command, path="/no/such")
    second = again.wait_submitted(TIMEOUT)
    assert second != first
    until(lambda: second in service.cache.values())
    done = ShellResult("test -f /no/such", "", "", 0)
    service.ended(second, vars(done) if return_dict else done)
    assert executor.submit(command, path="/no/such").result(TIMEOUT)
    assert len(service.submissions()) == 2


def test_large_batches_are_looked_up_and_noted_in_parts(
    service: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MAX_CACHE_KEYS", 2)
    executor = Executor(ENDPOINT, client, cache=True)
    for number in range(5):
        service.ended(run(service, executor, abs, number), number)
    gate = Gate(service)
    executor.submit(divmod, 1, 1)
    assert gate.reached.wait(TIMEOUT)
    futures = [executor.submit(abs, number) for number in range(5)]  # one batch
    gate.open.set()
    assert [future.result(TIMEOUT) for future in futures] == list(range(5))
    assert all(future.is_cached for future in futures)
    sizes = [len(each.body["keys"]) for each in service.seen("/v3/cache/find")]
    assert max(sizes) == 2
    executor.shutdown(wait=False, cancel_futures=True)


def test_an_answer_of_another_kind_stops_nothing(
    service: Any, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    service.react = lambda request: (
        (200, {"tasks": {key: [] for key in request.body["keys"]}})
        if request.path.endswith("/cache/find")
        else None
    )
    assert executor.submit(pow, 2, 10).wait_submitted(TIMEOUT)
    assert executor.submit(pow, 2, 11).wait_submitted(TIMEOUT)
    assert "looking for the results of earlier calls failed" in caplog.text


def test_the_end_of_an_executor_waits_until_its_calls_are_noted(
    service: Any, client: Client
) -> None:
    done = threading.Event()

    def react(request: Any) -> None:
        if request.path == "/v3/cache":
            done.wait(TIMEOUT)
            time.sleep(0.2)  # so that a shutdown that does not wait would be over

    service.react = react
    service.before_answer = lambda ids: [service.ended(each, 1024) for each in ids]
    with Executor(ENDPOINT, client, cache=True) as executor:
        executor.submit(pow, 2, 10).add_done_callback(lambda _: done.set())
    assert len(service.cache) == 1


def test_without_cache_nothing_is_looked_up_or_noted(service: Any, executor: Executor) -> None:
    service.ended(run(service, executor, pow, 2, 10), 1024)
    executor.cache = False
    requests = len(service.seen("/v3/cache"))
    assert executor.submit(pow, 2, 10).wait_submitted(TIMEOUT)
    assert executor.submit(pow, 2, 11).wait_submitted(TIMEOUT)
    assert len(service.seen("/v3/cache")) == requests


def test_a_task_that_was_removed_since_is_run_again(service: Any, executor: Executor) -> None:
    task = run(service, executor, pow, 2, 10)
    service.documents[task] = {"status": "failed", "exception": "it is unknown"}
    future = executor.submit(pow, 2, 10)
    assert future.wait_submitted(TIMEOUT) != task
    assert not future.is_cached


def test_a_call_is_run_again_if_its_result_has_left_its_store(
    service: Any, executor: Executor, tmp_path: Path
) -> None:
    executor.store = SharedDirectory(tmp_path, lifetime="1d")
    stored = executor.store.put([1024])
    service.ended(run(service, executor, pow, 2, 10), stored)
    again = executor.submit(pow, 2, 10)
    assert again.result(TIMEOUT) == [1024]
    assert again.is_cached
    stored.delete()
    future = executor.submit(pow, 2, 10)
    assert future.wait_submitted(TIMEOUT)
    assert not future.is_cached


class Unreadable:
    """Can be written, but not be read."""

    def __reduce__(self) -> Any:
        return {}.__getitem__, ("absent",)


def test_a_stored_result_that_can_not_be_read_affects_no_other_call(
    service: Any, executor: Executor, tmp_path: Path
) -> None:
    stored = SharedDirectory(tmp_path, lifetime="1d").put([1024])
    service.ended(run(service, executor, pow, 2, 10), (stored, Unreadable()))
    service.ended(run(service, executor, pow, 2, 11), 2048)
    gate = Gate(service)
    first = executor.submit(pow, 2, 0)  # the others are one batch then
    assert gate.reached.wait(TIMEOUT)
    unreadable, other = executor.submit(pow, 2, 10), executor.submit(pow, 2, 11)
    gate.open.set()
    assert other.result(TIMEOUT) == 2048
    assert isinstance(unreadable.exception(TIMEOUT), DeserializationError)
    assert first.wait_submitted(TIMEOUT)


def test_if_the_cache_can_not_be_used_calls_are_run(
    service: Any, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    service.react = lambda request: (
        (404, {"code": "NOT_FOUND"}) if "cache" in request.path else None
    )
    assert executor.submit(pow, 2, 10).wait_submitted(TIMEOUT)
    assert executor.submit(pow, 2, 11).wait_submitted(TIMEOUT)
    assert caplog.text.count("the cache of results can't be used") == 1


def test_an_error_is_not_cached(service: Any, executor: Executor) -> None:
    task = run(service, executor, divmod, 1, 0)
    service.documents[task] = {"status": "failed", "exception": "ZeroDivisionError"}
    assert executor.submit(divmod, 1, 0).wait_submitted(TIMEOUT) != task
    (old, _) = executor.reload_tasks()
    assert isinstance(old.exception(TIMEOUT), TaskExecutionFailed)


@pytest.mark.parametrize("wrong", [None, 1, ["x"]])
def test_only_a_switch_or_a_text_is_taken(executor: Executor, wrong: Any) -> None:
    with pytest.raises(TypeError, match="cache must be True, False or a text"):
        executor.cache = wrong
