"""A signal is heard of whatever the main thread does, whichever thread the kernel gives it to."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator

import pytest

from flux_endpoint.processes import signal_listener
from other_threads import signal_another_thread

PATIENCE = 30.0  # seconds


@pytest.fixture(autouse=True)
def handled() -> Iterator[list[int]]:
    """The signals whose handler has run."""
    numbers: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: numbers.append(number))
        for number in (signal.SIGUSR1, signal.SIGUSR2)
    }
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_every_signal_is_reported_in_order_and_its_handler_runs(handled: list[int]) -> None:
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    with signal_listener(told.put):
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
            os.kill(os.getpid(), number)
            assert told.get(timeout=PATIENCE) == number
    assert handled == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1]


def test_a_wait_of_the_main_thread_can_be_ended_by_a_signal_that_it_does_not_get() -> None:
    woken: queue.SimpleQueue[int] = queue.SimpleQueue()
    with signal_listener(woken.put):
        signal_another_thread(os.getpid(), signal.SIGUSR1)
        assert woken.get(timeout=PATIENCE) == signal.SIGUSR1


def test_the_earlier_listener_is_restored_afterwards(
    handled: list[int],
) -> None:
    outer: queue.SimpleQueue[int] = queue.SimpleQueue()
    inner: queue.SimpleQueue[int] = queue.SimpleQueue()
    with signal_listener(outer.put):
        with signal_listener(inner.put):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert inner.get(timeout=PATIENCE) == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGUSR2)
        assert outer.get(timeout=PATIENCE) == signal.SIGUSR2
    os.kill(os.getpid(), signal.SIGUSR1)
    assert inner.empty()
    assert outer.empty()
    assert handled == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1]
