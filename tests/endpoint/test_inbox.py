"""How many events a turn of the agent takes."""

from __future__ import annotations

import queue
import time
from pathlib import Path

import pytest

from flux_endpoint.amqp.bundle import MAX_PARTS
from flux_endpoint.endpoint import inbox
from flux_endpoint.endpoint.inbox import PAUSE, BrokerAlarm, Event, TurnRecorder
from flux_endpoint.endpoint.journal import Journal


class _Paced:
    """A recorder whose sleeps take no time; `arriving` events come during each of them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.journal = Journal(directory / "journal.db")
        self.recorder = TurnRecorder(self.inbox, self.journal, lambda: None, lambda: None)
        self.sleeps: list[float] = []
        self.arriving = 0
        self.now = 1000.0
        monkeypatch.setattr(inbox, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        self.put(self.arriving)

    def put(self, events: int) -> None:
        for _ in range(events):
            self.inbox.put(BrokerAlarm(""))

    def turn(self, unfinished: int, due: float = float("inf")) -> int:
        return len(self.recorder.take(min(due, self.now + 3600), unfinished))


@pytest.fixture
def paced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Paced:
    return _Paced(tmp_path, monkeypatch)


def test_the_event_of_a_lone_task_never_waits(paced: _Paced) -> None:
    for _ in range(20):
        paced.put(1)
        assert paced.turn(unfinished=1) == 1
        paced.now += 0.001
    assert paced.sleeps == []


def test_while_many_tasks_are_unfinished_their_results_are_taken_together(paced: _Paced) -> None:
    paced.put(1)
    paced.turn(unfinished=1000)
    paced.sleeps.clear()
    paced.arriving = 20
    paced.put(1)
    assert paced.turn(unfinished=1000) == 21
    assert len(paced.sleeps) == 1
    assert 0 < paced.sleeps[0] <= PAUSE.longest


def test_the_last_of_several_tasks_do_not_wait(paced: _Paced) -> None:
    """With 20 slow commands, results are taken together; with fewer than 8, each comes at once."""
    paced.put(1)
    paced.turn(unfinished=20)
    for unfinished, sleeps in ((20, 1), (8, 1), (7, 0), (1, 0)):
        paced.sleeps.clear()
        paced.now += 0.005
        paced.put(1)
        paced.turn(unfinished)
        assert len(paced.sleeps) == sleeps, unfinished


def test_a_turn_that_has_enough_events_begins_at_once(paced: _Paced) -> None:
    paced.put(1)
    paced.turn(unfinished=1000)
    paced.sleeps.clear()
    paced.put(MAX_PARTS)
    assert paced.turn(unfinished=1000) == MAX_PARTS
    assert paced.sleeps == []


def test_results_that_come_slowly_do_not_wait_for_each_other(paced: _Paced) -> None:
    paced.put(1)
    paced.turn(unfinished=1000)
    paced.sleeps.clear()
    paced.now += 2 * PAUSE.longest
    paced.put(1)
    assert paced.turn(unfinished=1000) == 1
    assert paced.sleeps == []


def test_a_pause_ends_when_something_is_due(paced: _Paced) -> None:
    paced.put(1)
    paced.turn(unfinished=1000)
    paced.sleeps.clear()
    paced.put(1)
    paced.turn(unfinished=1000, due=paced.now + 0.001)
    assert paced.sleeps == [pytest.approx(0.001)]


def test_a_turn_without_events_ends_when_it_is_due(tmp_path: Path) -> None:
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    journal = Journal(tmp_path / "journal.db")
    assert TurnRecorder(inbox, journal, lambda: None, lambda: None).take(time.monotonic(), 5) == []
