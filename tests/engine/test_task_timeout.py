"""The walltime that a site gives to Python functions."""

from __future__ import annotations

import signal

import pytest
from engine_world import fresh_seconds, processes

from flux_endpoint.engine.task_timeout import VARIABLE, task_timeout
from flux_endpoint.functions import ShellFunction
from waiting import until

# The suite's own time limit would use the same signal.
pytestmark = pytest.mark.timeout(method="thread")


def sleep(seconds):
    import time

    time.sleep(seconds)
    return "slept"


def own_pid():
    import os

    return os.getpid()


def test_a_function_that_exceeds_the_limit_raises_and_its_worker_continues(make_world, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1.5")  # far more than the others take, however slow it is here
    world = make_world(workers_per_node=1)
    before = world.call(own_pid).value
    end = world.call(sleep, 600)
    assert end.code == "RemoteExecutionError"
    assert "TimeoutError: longer than 1.5 s, which is the GC_TASK_TIMEOUT of this" in end.text
    assert world.call(sleep, 0).value == "slept"
    assert world.call(own_pid).value == before


def test_a_timeout_longer_than_any_poll_is_accepted(make_world, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(40 * 86400))
    world = make_world(workers_per_node=1, min_nodes=0, idle_timeout="40d")
    before = world.call(own_pid).value
    assert world.call(sleep, 0.3).value == "slept"
    assert world.call(own_pid).value == before


def test_a_command_is_ended_with_all_that_it_started(make_world, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.2")
    world = make_world(workers_per_node=1)
    seconds = fresh_seconds()
    end = world.call(ShellFunction(f"sleep {seconds} & sleep {seconds}"))
    assert "GC_TASK_TIMEOUT" in end.text
    until(lambda: not processes(seconds))


@pytest.mark.parametrize("value", [None, "", "0", "-1", "600"])
def test_without_a_limit_nothing_happens(monkeypatch, value):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    before = signal.getsignal(signal.SIGALRM)
    with task_timeout():
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_the_signal_handler_is_restored_afterwards(monkeypatch):
    monkeypatch.setenv(VARIABLE, "3600")
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError), task_timeout():
        signal.raise_signal(signal.SIGALRM)  # as at its end, and for certain in here
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("value", ["soon", "nan", "inf"])
def test_a_timeout_that_is_not_a_number_is_refused(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    said = f"GC_TASK_TIMEOUT must be a number of seconds, not '{value}'"
    with pytest.raises(ValueError, match=said), task_timeout():
        pass
