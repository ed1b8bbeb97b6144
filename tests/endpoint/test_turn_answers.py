"""A turn is answered once the disk keeps it, after all earlier ones; others go on meanwhile."""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flux_endpoint.endpoint.inbox import BrokerAlarm, Event, Turn, TurnRecorder
from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.errors import RecordError

PATIENCE = 60.0


class _SlowDisk(Journal):
    """Each synchronization takes until the test gives it an outcome."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.outcomes: queue.SimpleQueue[RecordError | None] = queue.SimpleQueue()

    def sync(self) -> None:
        outcome = self.outcomes.get(timeout=PATIENCE)
        if outcome is not None:
            raise outcome
        super().sync()


class _World:
    def __init__(self, directory: Path) -> None:
        self.journal = _SlowDisk(directory / "journal.db")
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.recorder = TurnRecorder(self.inbox, self.journal, lambda: None, lambda: None)
        self.recorder.start()

    def turn(self, *, accepts: bool) -> Turn:
        task_id = str(uuid.uuid4())
        turn = Turn(accepted=[EngineTask(task_id, task_id, "")] if accepts else [])
        self.recorder.record(turn)
        return turn

    def after_synchronization(self) -> list[Turn]:
        """Wait for the next event, which must be the end of a synchronization."""
        assert self.recorder.take(time.monotonic() + PATIENCE) == []
        return self.recorder.to_answer(Turn())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[_World]:
    made = _World(tmp_path)
    yield made
    for _ in range(9):
        made.journal.outcomes.put(None)
    made.recorder.close()
    made.journal.close()


def test_a_turn_without_a_record_is_answered_at_once(world: _World) -> None:
    turn = world.turn(accepts=False)
    assert world.recorder.to_answer(turn) == [turn]


def test_turns_are_answered_in_order_once_the_disk_keeps_them(world: _World) -> None:
    first, second = world.turn(accepts=True), world.turn(accepts=False)
    assert world.recorder.to_answer(first) == []
    assert world.recorder.to_answer(second) == []
    world.journal.outcomes.put(None)
    assert world.after_synchronization()[:2] == [first, second]


def test_a_turn_during_a_synchronization_waits_for_the_next(world: _World) -> None:
    first, second = world.turn(accepts=True), world.turn(accepts=True)
    assert world.recorder.to_answer(first) == []
    assert world.recorder.to_answer(second) == []
    world.journal.outcomes.put(None)
    assert world.after_synchronization() == [first]
    world.journal.outcomes.put(None)
    assert world.after_synchronization()[0] is second


def test_events_are_taken_while_the_disk_is_slow(world: _World) -> None:
    assert world.recorder.to_answer(world.turn(accepts=True)) == []
    world.inbox.put(BrokerAlarm(""))
    assert world.recorder.take(time.monotonic() + PATIENCE) == [BrokerAlarm("")]


def test_a_turn_waits_until_a_full_disk_can_be_written(world: _World) -> None:
    turn = world.turn(accepts=True)
    assert world.recorder.to_answer(turn) == []
    for outcome in (RecordError("full"), RecordError("still full"), None):
        world.journal.outcomes.put(outcome)
    assert world.after_synchronization()[0] is turn
    assert world.recorder.trouble == ""


def test_at_the_end_nothing_is_answered_that_the_disk_does_not_keep(world: _World) -> None:
    turn = world.turn(accepts=True)
    assert world.recorder.to_answer(turn) == []
    for _ in range(2):
        world.journal.outcomes.put(RecordError("full"))
    assert world.recorder.close() == []


def test_at_the_end_the_last_turns_are_answered(world: _World) -> None:
    turn = world.turn(accepts=True)
    assert world.recorder.to_answer(turn) == []
    for _ in range(2):
        world.journal.outcomes.put(None)
    assert world.recorder.close() == [turn]
