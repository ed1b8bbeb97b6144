"""Where each task of an engine is, and what was tried for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from flux_endpoint.engine.attempts import KeptAttempts
from flux_endpoint.engine.task_index import TaskIndex, TaskPlace

TASKS = st.sampled_from(["a", "b"])


@pytest.fixture
def kept(tmp_path: Path) -> KeptAttempts:
    return KeptAttempts(tmp_path)


def test_cancel_returns_the_place_of_a_task(kept: KeptAttempts) -> None:
    index = TaskIndex(kept)
    for place in TaskPlace:
        index.add(place.value, place, [])
    assert [index.cancel(place.value) for place in TaskPlace] == list(TaskPlace)
    assert index.cancel("unknown") is None
    assert index.place("unknown") is None


def test_attempts_of_earlier_engines_are_handed_on_and_forgotten_with_the_end(
    kept: KeptAttempts,
) -> None:
    kept.keep("task", ["the node was lost"])
    index = TaskIndex(kept)
    index.load()
    assert index.add("task", TaskPlace.JOBS, []) == ["the node was lost"]
    index.end("task")
    assert kept.load() == {}
    assert index.task_ids() == set()


def test_attempts_that_the_submitter_knows_count_more_than_those_on_disk(
    kept: KeptAttempts,
) -> None:
    kept.keep("task", ["one"])
    index = TaskIndex(kept)
    index.load()
    assert index.add("task", TaskPlace.WORKERS, ["one", "two"]) == ["one", "two"]
    assert index.leave("task") == ["one", "two"]
    assert kept.load() == {"task": ["one"]}


class Formatting(RuleBasedStateMachine):
    """A task that is formatted becomes a job, or is cancelled, whichever comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.index = TaskIndex(KeptAttempts(Path("/nonexistent")))
        self.place: dict[str, TaskPlace] = {}
        self.cancelled: set[str] = set()
        self.urgency: dict[str, int] = {}

    @rule(task=TASKS)
    def add(self, task: str) -> None:
        self.urgency.pop(task, None)
        self.index.add(task, TaskPlace.FORMATTING, [])
        self.place[task] = TaskPlace.FORMATTING
        self.cancelled.discard(task)

    @rule(task=TASKS)
    def cancel(self, task: str) -> None:
        assert self.index.cancel(task) is self.place.get(task)
        if self.place.get(task) is TaskPlace.FORMATTING:
            self.cancelled.add(task)

    @rule(task=TASKS)
    def formatted(self, task: str) -> None:
        if self.place.get(task) is not TaskPlace.FORMATTING:
            return
        submitted: list[tuple[list[str], int | None]] = []
        begins = self.index.begin_job(task, lambda *handed: submitted.append(handed))
        assert begins == (task not in self.cancelled)
        assert self.index.was_cancelled(task) == (task in self.cancelled)
        assert len(submitted) == (task not in self.cancelled)
        if submitted:
            self.place[task] = TaskPlace.JOBS
            assert submitted == [([], self.urgency.get(task))]

    @rule(task=TASKS, urgency=st.integers(0, 31))
    def set_urgency(self, task: str, urgency: int) -> None:
        assert self.index.set_urgency(task, urgency) is self.place.get(task)
        if self.place.get(task) is TaskPlace.FORMATTING:
            self.urgency[task] = urgency

    @rule(task=TASKS)
    def end(self, task: str) -> None:
        self.index.end(task)
        self.place.pop(task, None)
        self.cancelled.discard(task)
        assert self.index.task_ids() == set(self.place)


TestFormatting = Formatting.TestCase
