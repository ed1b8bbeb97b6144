"""Urgency and hold of tasks that have not begun, on either executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_world import World, buffer_of

from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.held.tasks import DeclinedError, HeldTask
from flux_endpoint.engine.workers.backlog import TaskBacklog, TaskEntry
from flux_endpoint.engine.workers.book import ManagerRecord, StartTimes, TaskBook
from flux_endpoint.functions import ShellFunction
from waiting import until

ONE = {"num_ranks": 1}


@pytest.fixture(scope="module")
def one_worker(kind, tmp_path_factory):
    """An engine whose functions all run on one worker."""
    local = {"local_nodes": 1, "local_cores_per_node": 2} if kind == "local" else {}
    world = World(kind, tmp_path_factory.mktemp("endpoint"), max_workers=1, min_workers=1, **local)
    yield world
    world.stop()


def urgencies(world: World, task_id: str) -> list[int]:
    """Return the urgencies of a task's job, in order, as its events have them."""
    return [
        event.context["urgency"]
        for event in list(world.events)
        if event.task_id == task_id and event.name in {"submit", "urgency"}
    ]


def test_a_held_job_runs_when_it_is_released(one_worker: World) -> None:
    task_id = one_worker.submit(ShellFunction("true"), spec={**ONE, "urgency": 0})
    one_worker.event(task_id, "submit")
    one_worker.engine.set_urgency(task_id, 20)
    assert one_worker.end(task_id).value.returncode == 0
    assert urgencies(one_worker, task_id) == [0, 20]


def test_the_urgency_of_a_waiting_job_can_be_changed(one_worker: World) -> None:
    task_id = one_worker.submit(ShellFunction("true"), spec={**ONE, "begin_time": "+1h"})
    for urgency in (0, 31, 1):  # the first may come before the job has an id
        one_worker.engine.set_urgency(task_id, urgency)
    until(lambda: urgencies(one_worker, task_id)[-1:] == [1])
    one_worker.engine.cancel(task_id)
    assert one_worker.end(task_id).code == "TaskCancelled"


def test_a_task_has_the_urgency_that_it_brings(one_worker: World) -> None:
    for spec in (ONE, None):
        buffer = buffer_of(ShellFunction("true"))
        task_id = one_worker.submit_buffer(buffer, spec, urgency=0)
        if spec is not None:
            one_worker.event(task_id, "submit")
            assert urgencies(one_worker, task_id) == [0]
        one_worker.engine.set_urgency(task_id, 16)
        assert one_worker.end(task_id).value.returncode == 0


def waits(directory: str) -> None:
    import time
    from pathlib import Path

    Path(directory, "began").touch()
    while not Path(directory, "go").exists():
        time.sleep(0.01)


def note(path: str, name: str) -> None:
    from pathlib import Path

    with Path(path).open("a") as file:
        file.write(name)


def test_a_function_that_is_held_before_it_begins_waits(one_worker: World, tmp_path: Path) -> None:
    blocker = one_worker.submit(waits, str(tmp_path))
    until((tmp_path / "began").exists)
    path = str(tmp_path / "order")
    first, second, third = (one_worker.submit(note, path, each) for each in "123")
    one_worker.engine.set_urgency(third, 20)
    one_worker.engine.set_urgency(first, 0)  # which the worker's node may have already
    until(lambda: one_worker.engine._pool._waiting.held == 1)
    (tmp_path / "go").touch()
    one_worker.ends([blocker, second, third])
    assert set((tmp_path / "order").read_text()) == {"2", "3"}
    assert not one_worker.has_ended(first)
    one_worker.engine.set_urgency(first, 16)
    one_worker.end(first)
    assert (tmp_path / "order").read_text()[-1] == "1"


def test_a_held_task_can_be_ended(one_worker: World) -> None:
    for spec in (None, ONE):
        task_id = one_worker.submit_buffer(buffer_of(ShellFunction("true")), spec, urgency=0)
        one_worker.engine.cancel(task_id)
        assert one_worker.end(task_id).code == "TaskCancelled"


def test_a_task_of_a_held_allocation_becomes_a_job_of_its_own(tmp_path: Path) -> None:
    def task() -> HeldTask:
        nothing: Any = None
        return HeldTask("t", tmp_path, (0, 0), {}, 0.0, nothing, nothing, nothing)

    waiting, running = task(), task()
    waiting.set_urgency(0, 0)
    assert isinstance(waiting.future.exception(0), DeclinedError)
    assert not waiting.placed(7)
    assert running.placed(7)
    running.set_urgency(7, 0)
    assert not running.future.done()


def test_a_held_task_is_taken_back_from_a_manager_that_was_away() -> None:
    sent: list[list[bytes]] = []
    book = TaskBook(TaskBacklog(0, lambda *_: None), lambda _, frames: sent.append(frames))
    nothing: Any = None
    manager = ManagerRecord("m", 1, nothing, StartTimes(0.0))
    for name, urgency in (("held", 0), ("other", None)):
        task = EngineTask(name, "f", "", urgency=urgency)
        manager.tasks[name] = TaskEntry(task, lambda _: None)
    held = {"waiting": ["held", "other"], "running": {}, "ended": []}
    assert book.reconcile(manager, ["held", "other"], held) == []
    assert sent == [[b"take", b"held"]]


class TestBacklog:
    def entry(self, name: str, urgency: int | None = None) -> TaskEntry:
        return TaskEntry(EngineTask(name, "f", "", urgency=urgency), lambda _: None)

    def taken(self, backlog: TaskBacklog) -> str:
        return "".join(backlog.take().task.task_id for _ in range(len(backlog)))

    def test_tasks_are_taken_by_urgency_and_in_order(self) -> None:
        backlog = TaskBacklog(0, lambda *_: None)
        for name, urgency in zip("abcdef", (None, 20, 3, 16, 0, 20), strict=True):
            backlog.append(self.entry(name, urgency))
        assert (len(backlog), backlog.held) == (5, 1)
        assert self.taken(backlog) == "bfadc"
        assert backlog.held == 1

    def test_the_urgency_of_a_waiting_task_changes_its_place(self) -> None:
        backlog = TaskBacklog(0, lambda *_: None)
        entries = [self.entry(name) for name in "abcd"]
        for each in entries:
            backlog.append(each)
        for each, urgency in zip(entries, (0, 17, 16, 5), strict=True):
            backlog.set_urgency(each, urgency)
        assert self.taken(backlog) == "bcd"
        backlog.set_urgency(entries[0], 16)
        backlog.requeue(entries[1])
        assert [each.task.task_id for each in backlog.extract({"a", "x"})] == ["a"]
        assert self.taken(backlog) == "b"

    def test_held_tasks_are_left_with_the_others(self) -> None:
        left: list[str] = []
        backlog = TaskBacklog(0, lambda task_id, _: left.append(task_id))
        for name, urgency in (("a", 0), ("b", None)):
            backlog.append(self.entry(name, urgency))
        backlog.leave_all()
        assert left == ["b", "a"]
        assert (len(backlog), backlog.held) == (0, 0)
