"""`OwnerThread`: order of actions, timers, failures, and its end."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.owner_thread import OwnerThread, ThreadStoppedError, _Timers

PATIENCE = 60.0


@pytest.fixture
def owner() -> Iterator[OwnerThread]:
    owner = OwnerThread("test")
    owner.start()
    yield owner
    owner.stop()
    owner.join(PATIENCE)


def test_actions_run_in_the_order_in_which_they_were_posted(owner: OwnerThread) -> None:
    seen: list[int] = []
    for number in range(1000):
        assert owner.offer(lambda number=number: seen.append(number))
    assert owner.call(lambda: list(seen)) == list(range(1000))


def test_actions_run_on_the_one_thread_that_has_the_name(owner: OwnerThread) -> None:
    assert owner.call(lambda: threading.current_thread().name) == "test"
    assert owner.call(lambda: owner.is_current)
    assert not owner.is_current


def test_a_call_raises_what_its_function_raises(owner: OwnerThread) -> None:
    with pytest.raises(ZeroDivisionError):
        owner.call(lambda: 1 // 0)


def test_a_call_on_the_thread_itself_runs_at_once(owner: OwnerThread) -> None:
    assert owner.call(lambda: owner.call(lambda: 7)) == 7


def test_an_action_that_fails_is_logged_and_the_others_go_on(
    owner: OwnerThread, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        owner.post(lambda: 1 // 0)
        assert owner.call(lambda: "next") == "next"
    assert "ZeroDivisionError" in caplog.text


def test_errors_are_passed_to_a_given_handler() -> None:
    errors: list[Exception] = []

    def fail(error: Exception) -> None:
        errors.append(error)
        owner.stop()

    owner = OwnerThread("test", on_error=fail)
    owner.start()
    owner.post(lambda: 1 // 0)
    owner.join(PATIENCE)
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert not owner.offer(lambda: None)


@given(delays=st.lists(st.sampled_from([0.0, 0.001, 0.002, 0.003, 0.02]), max_size=8))
def test_each_timer_runs_once_and_not_early(delays: list[float]) -> None:
    owner = OwnerThread("test")
    done = threading.Event()
    ran: list[tuple[float, float]] = []  # due, ran at

    def tick(due: float) -> None:
        ran.append((due, time.monotonic()))
        if len(ran) == len(delays):
            done.set()

    def begin() -> None:
        for delay in delays:
            owner.after(delay, partial(tick, time.monotonic() + delay))

    owner.start()
    owner.call(begin)
    assert not delays or done.wait(PATIENCE)
    owner.stop()
    owner.join(PATIENCE)
    assert len(ran) == len(delays)
    assert all(at >= due for due, at in ran)


@given(moments=st.lists(st.integers(0, 9)), now=st.integers(0, 9))
def test_timers_are_taken_by_their_time_then_by_their_order(moments: list[int], now: int) -> None:
    timers, taken = _Timers(), []
    for number, moment in enumerate(moments):
        timers.add(moment, partial(taken.append, (moment, number)))
    while (action := timers.take(now)) is not None:
        action()
    assert taken == sorted((m, n) for n, m in enumerate(moments) if m <= now)
    assert timers.next_at == min((m for m in moments if m > now), default=math.inf)


def test_a_thread_that_is_kept_busy_runs_its_timers() -> None:
    owner = OwnerThread("test")
    fired = threading.Event()

    def again() -> None:
        if not fired.is_set():
            owner.post(again)

    owner.start()
    owner.post(again)
    owner.call(lambda: owner.after(0.01, fired.set))
    assert fired.wait(PATIENCE)
    owner.stop()
    owner.join(PATIENCE)


def test_after_each_turn_the_callback_returns_the_next_wakeup() -> None:
    answers = iter([0.0, 0.01, math.inf])
    asked: list[float] = []
    idle = threading.Event()

    def after_turn() -> float:
        asked.append(time.monotonic())
        answer = next(answers, math.inf)
        if math.isinf(answer):
            idle.set()
        return answer

    owner = OwnerThread("test", after_turn=after_turn)
    owner.start()
    assert idle.wait(PATIENCE)
    assert len(asked) == 3
    assert asked[2] - asked[1] >= 0.01
    owner.stop()
    owner.join(PATIENCE)


def test_actions_posted_before_the_stop_run_and_later_ones_do_not() -> None:
    seen: list[str] = []
    owner = OwnerThread("test", at_end=lambda: seen.append("end"))
    owner.post(lambda: seen.append("before"))
    owner.stop()
    assert not owner.offer(lambda: seen.append("after"))
    with pytest.raises(ThreadStoppedError):
        owner.call(lambda: seen.append("call"))
    owner.start()
    owner.join(PATIENCE)
    assert seen == ["before", "end"]


def test_an_action_can_end_the_thread_and_pending_calls_raise() -> None:
    owner = OwnerThread("test")
    refused: list[BaseException] = []
    stopping, waiting = threading.Event(), threading.Event()

    def stop() -> None:
        stopping.set()
        assert waiting.wait(PATIENCE)
        owner.stop()

    def ask() -> None:
        try:
            owner.call(lambda: None)
        except ThreadStoppedError as error:
            refused.append(error)

    owner.start()
    owner.post(stop)
    assert stopping.wait(PATIENCE)
    asker = threading.Thread(target=ask)
    asker.start()
    while owner.is_idle:
        time.sleep(0.001)
    waiting.set()
    asker.join(PATIENCE)
    owner.join(PATIENCE)
    assert len(refused) == 1


def test_a_failed_after_turn_callback_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flux_endpoint.owner_thread._AFTER_FAILURE", 0.01)
    done = threading.Event()
    turns = iter([True, True, False])

    def after_turn() -> float:
        if next(turns, False):
            raise OSError("not yet")
        done.set()
        return math.inf

    owner = OwnerThread("test", after_turn=after_turn, on_error=lambda _: None)
    owner.start()
    assert done.wait(PATIENCE)
    owner.stop()
    owner.join(PATIENCE)
