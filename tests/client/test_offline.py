"""Endpoints that are offline, a service that is away: said once, and no wait without a word."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest

from flux_endpoint import Client, ComputeFuture, Executor, ServiceUnreachableError
from flux_endpoint.client import results as results_module

TIMEOUT = 20
ENDPOINT = "00000000-0000-4000-8000-00000000000e"


class Told:
    """Has the service tell an endpoint's state, with each submission and when it is asked."""

    def __init__(self, service: Any) -> None:
        self.state: dict[str, Any] = {"status": "online", "last_seen": 1.5}
        self.asked = threading.Semaphore(0)
        self._service = service
        service.react = self

    def __call__(self, request: Any) -> Any:
        if request.path.endswith(f"{ENDPOINT}/status"):
            self.asked.release()
            return 200, {"details": {}, **self.state}
        if request.path.endswith("/submit"):
            told = {f"endpoint_{key}": value for key, value in self.state.items()}
            return 200, {**self._service.answer(request), **told}
        return None


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("endpoint ")]


def test_an_offline_endpoint_is_named_once_and_again_when_it_is_back(
    service: Any, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(service)
    states = ["online", "offline", "offline", "online", "online"]
    for state in states:
        told.state["status"] = state
        assert executor.submit(pow, 2, 2).wait_submitted(TIMEOUT)
    executor.reload_tasks()  # which passes through the thread that says so
    gone, back = said(caplog)
    assert gone.startswith(f"endpoint {ENDPOINT} is offline since 1970-01-01 ")
    assert "tasks wait at the service until it is back" in gone
    assert back == f"endpoint {ENDPOINT} is online again"


def test_an_endpoint_that_was_never_online_is_named_as_such(
    service: Any, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    Told(service).state = {"status": "offline"}
    assert executor.submit(pow, 2, 2).wait_submitted(TIMEOUT)
    executor.reload_tasks()  # which passes through the thread that says so
    (gone,) = said(caplog)
    assert "is offline and has never been online" in gone


def test_an_endpoint_that_goes_offline_while_a_task_waits_is_noticed(
    service: Any,
    executor: Executor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(results_module, "QUIET", 0.05)
    monkeypatch.setattr(results_module, "MAX_QUIET", 0.1)
    told = Told(service)
    assert executor.submit(pow, 2, 2).wait_submitted(TIMEOUT)
    assert told.asked.acquire(timeout=TIMEOUT)
    assert said(caplog) == []
    told.state["status"] = "offline"
    for _ in range(4):  # what was asked before may have been answered before
        assert told.asked.acquire(timeout=TIMEOUT)
    assert len(said(caplog)) == 1


def test_an_exception_in_the_with_block_does_not_wait_and_says_how_to_get_results(
    service: Any, run_script: Any
) -> None:
    done = run_script("""
        with Executor(ENDPOINT) as executor:
            assert executor.submit(pow, 2, 2).wait_submitted(30)
            print(executor.task_group_id, flush=True)
            raise ValueError("mine")
    """)
    group = done.stdout.strip()
    assert done.returncode == 1
    assert "ValueError: mine" in done.stderr
    assert "left by ValueError without waiting for 1 task." in done.stderr
    assert f"Executor(...).reload_tasks('{group}') gets their results" in done.stderr
    assert f"`flux-endpoint cancel --group {group}` ends all tasks of the group" in done.stderr


def test_an_exception_in_the_with_block_warns_of_nothing_if_all_tasks_are_done(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="mine"), Executor(ENDPOINT, client):
        raise ValueError("mine")
    assert "left by" not in caplog.text


def test_tasks_submitted_before_an_exception_are_still_sent(service: Any, client: Client) -> None:
    go = threading.Event()

    def hold(request: Any) -> None:
        if request.path == "/v3/functions":
            assert go.wait(TIMEOUT)

    service.react = hold

    def fail() -> ComputeFuture:
        with suppress(ValueError), Executor(ENDPOINT, client) as executor:
            future = executor.submit(pow, 2, 2)
            raise ValueError("mine")
        return future

    future = fail()  # which returns although nothing was sent
    go.set()
    assert future.wait_submitted(TIMEOUT)


def test_the_warning_says_how_long_an_unreachable_service_is_retried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = Client("http://127.0.0.1:9", "token")
    with Executor(ENDPOINT, client) as executor:
        assert executor.give_up_after == 600
        executor.give_up_after = 0
        future = executor.submit(pow, 2, 2)
        with pytest.raises(ServiceUnreachableError, match=r"no connection.*; tried for \d"):
            future.result(TIMEOUT)
    assert "trying again for 0s (give_up_after)" in caplog.text


@pytest.mark.parametrize("value", [-1, float("nan"), "600", None, True])
def test_the_time_to_give_up_after_must_be_a_number_of_seconds(client: Client, value: Any) -> None:
    with pytest.raises(ValueError, match="give_up_after must be a number of seconds"):
        Executor(ENDPOINT, client, give_up_after=value)


def test_the_warning_counts_tasks_not_sent_before_the_exit(run_script: Any) -> None:
    done = run_script("""
        from flux_endpoint.client import exits
        exits.EXIT_FLUSH = 0.1
        executor = Executor(ENDPOINT, Client("http://127.0.0.1:9", "token"))
        futures = [executor.submit(pow, 2, i) for i in range(3)]
    """)
    assert done.returncode == 0, done.stderr
    assert "3 tasks could not be sent before the program's end, and may never run" in done.stderr
