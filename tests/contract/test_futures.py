"""Job ids, callbacks, cancellation and attaching: the futures' part of the contract."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest
from worlds import PATIENCE, Gate, Recorder, shell, text


def test_a_future_is_one_of_the_standard_library(world):
    futures = [world.executor.submit(text("true")) for _ in range(3)]
    assert all(isinstance(future, concurrent.futures.Future) for future in futures)
    done, not_done = concurrent.futures.wait(futures, PATIENCE)
    assert (len(done), len(not_done)) == (3, 0)


def test_every_job_has_an_id_of_its_own_and_they_grow(world):
    ids = [world.executor.submit(text("true")).jobid(PATIENCE) for _ in range(3)]
    assert ids == sorted(set(ids))
    assert all(0 < jobid < 1 << 64 for jobid in ids)


def test_the_id_is_there_when_the_future_is_done(world):
    future = world.executor.submit(text("true"))
    future.result(PATIENCE)
    assert future.jobid(0) > 0


def test_a_jobid_callback_gets_the_future(world):
    early, late = Gate(), Gate()
    future = world.executor.submit(text("true"))
    assert future.add_jobid_callback(early) is future
    assert early.wait() == (future,)
    assert future.add_jobid_callback(late) is future
    assert late.wait() == (future,)


def test_jobid_callbacks_come_before_events(world):
    order = []
    future = world.executor.submit(text("true"))
    future.add_jobid_callback(lambda _: order.append("jobid"))
    future.add_event_callback("submit", lambda *_: order.append("submit"))
    future.add_done_callback(lambda _: order.append("done"))
    Recorder(future).wait("clean")  # the callbacks of its end come after who waits for its result
    assert order == ["jobid", "submit", "done"]


def test_add_done_callback_returns_the_future(world):
    gate = Gate()
    future = world.executor.submit(text("true"))
    assert future.add_done_callback(gate) is future
    assert gate.wait() == (future,)


def test_late_event_callbacks_get_past_events(world):
    future = world.executor.submit(text("true"))
    Recorder(future).wait("clean")
    for name in ("submit", "start", "finish", "clean"):
        gate = Gate()
        assert future.add_event_callback(name, gate) is future
        assert not gate.is_unused()  # it was called at once
        called_with, event = gate.wait()
        assert (called_with, event.name) == (future, name)


def test_a_callback_that_was_added_twice_is_called_twice(world):
    gate = Gate()
    future = world.executor.submit(text("true"))
    future.add_event_callback("finish", gate).add_event_callback("finish", gate)
    assert gate.wait() == gate.wait()


def test_a_callback_for_an_unknown_event_is_refused(world):
    future = world.executor.submit(text("true"))
    with pytest.raises(ValueError, match="lunch"):
        future.add_event_callback("lunch", Gate())
    future.result(PATIENCE)


def test_an_exception_in_a_callback_is_ignored(world):
    gate = Gate()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("the callback's own fault")

    future = world.executor.submit(text("true"))
    future.add_jobid_callback(fail).add_event_callback("start", fail)
    future.add_event_callback("finish", fail).add_event_callback("finish", gate)
    assert future.result(PATIENCE) == 0
    gate.wait()


def test_callbacks_may_be_added_from_callbacks(world):
    inner = Gate()
    future = world.executor.submit(text("true"))
    future.add_event_callback("start", lambda f, _: f.add_event_callback("start", inner))
    future.add_jobid_callback(lambda f: f.add_jobid_callback(inner))
    assert {len(inner.wait()), len(inner.wait())} == {1, 2}
    future.result(PATIENCE)
    assert inner.is_unused()


def test_waiting_inside_a_callback_raises_instead_of_blocking(world, tmp_path):
    outcome, go = Gate(), tmp_path / "go"

    def wait(future, *_: object) -> None:
        for method in (future.result, future.exception):
            try:
                method()
            except RuntimeError as exc:
                outcome(str(exc))

    future = world.executor.submit(shell(f"while [ ! -e {go} ]; do sleep 0.05; done"))
    future.add_event_callback("finish", wait)  # before that it is not there: `wait` is not for us
    go.touch()
    assert outcome.wait() == outcome.wait() == ("Cannot wait for future from inside callback",)
    assert future.result(PATIENCE) == 0


def test_an_available_result_can_be_read_inside_a_callback(world):
    outcome = Gate()
    future = world.executor.submit(shell("exit 4"))
    future.add_event_callback("clean", lambda f, _: outcome(f.result()))
    assert outcome.wait() == (4,)


def test_a_job_may_be_submitted_from_a_callback(world):
    outcome = Gate()

    def submit(*_: object) -> None:
        world.executor.submit(shell("exit 6")).add_done_callback(outcome)

    world.executor.submit(text("true")).add_done_callback(submit)
    assert outcome.wait()[0].result() == 6


def test_a_running_job_cannot_be_cancelled_through_its_future(world):
    future = world.executor.submit(text("true"))
    future.jobid(PATIENCE)
    assert not future.cancel()
    assert not future.cancelled()
    assert future.result(PATIENCE) == 0


def test_a_cancelled_future_has_no_job(world):
    cancelled = []
    for _ in range(20):
        future = world.executor.submit(text("true"))
        if future.cancel():
            cancelled.append(future)
            assert future.cancel()  # again
            with pytest.raises(concurrent.futures.CancelledError):
                future.jobid(0)
            with pytest.raises(concurrent.futures.CancelledError):
                future.result(0)
        else:
            assert future.result(PATIENCE) == 0


def test_waiting_has_a_limit(world):
    future = world.executor.submit(text("sleep", "600"))
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0)
    world.cancel(future.jobid(PATIENCE))
    assert future.exception(PATIENCE).type == "cancel"


def test_attach_follows_a_running_job(world):
    first = world.executor.submit(text("sleep", "600"))
    jobid = first.jobid(PATIENCE)
    second = world.executor.attach(jobid)
    assert second.jobid(0) == jobid
    Recorder(second).wait("start")
    world.cancel(jobid)
    assert second.exception(PATIENCE).type == first.exception(PATIENCE).type == "cancel"


def test_attach_to_an_ended_job_gives_its_result_and_all_its_events(world):
    first = world.executor.submit(shell("exit 3"))
    recorded = Recorder(first)
    recorded.wait("clean")
    second = world.executor.attach(first.jobid())
    replayed = Recorder(second)
    assert second.result(PATIENCE) == 3
    replayed.wait("clean")
    assert replayed.events == recorded.events


def test_attach_gives_the_exception_of_an_ended_job(world):
    first = world.executor.submit(text("no-such-program"))
    assert first.exception(PATIENCE).type == "exec"
    second = world.executor.attach(first.jobid())
    assert isinstance(second.exception(PATIENCE), world.job_exception)
    assert second.exception().note == first.exception().note


@pytest.mark.parametrize("jobid", [0, 5, 2**63])
def test_attach_to_an_unknown_id(world, jobid):
    future = world.executor.attach(jobid)
    assert future.jobid(0) == jobid
    with pytest.raises(ValueError, match="job ID does not match any job"):
        future.result(PATIENCE)


@pytest.mark.parametrize(
    ("jobid", "error"),
    [(None, TypeError), (-1, OverflowError), (2**64, OverflowError), ("lunch", ValueError)],
)
def test_attach_to_an_invalid_id(world, jobid, error):
    future = world.executor.attach(jobid)
    assert future.jobid(0) == jobid
    with pytest.raises(error):
        future.result(PATIENCE)


def test_cancel_and_kill_of_an_unknown_or_ended_job(world):
    future = world.executor.submit(text("true"))
    Recorder(future).wait("clean")
    for jobid in (5, future.jobid()):
        with pytest.raises(FileNotFoundError):
            world.cancel(jobid)
        with pytest.raises(OSError, match=r"unknown job id|job is inactive"):
            world.kill(jobid, 15)


def test_kill_with_an_invalid_signal(world):
    future = world.executor.submit(text("sleep", "600"))
    Recorder(future).wait("start")
    with pytest.raises(OSError, match="Invalid signal number"):
        world.kill(future.jobid(), 900)
    world.cancel(future.jobid())
    future.exception(PATIENCE)


def test_callbacks_of_different_futures_run_in_as_many_threads_as_asked_for(world, tmp_path):
    together = threading.Barrier(2)
    passed, go = Gate(), tmp_path / "go"

    def meet(*_: object) -> None:
        together.wait(PATIENCE)
        passed()

    with world.new_executor(threads=2) as executor:
        for _ in range(2):
            # Whoever adds a callback after its event calls it.
            future = executor.submit(shell(f"while [ ! -e {go} ]; do sleep 0.05; done"))
            future.add_event_callback("finish", meet)
        go.touch()
        passed.wait()
        passed.wait()
