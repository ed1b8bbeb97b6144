"""Ends of tasks in a manager and on disk, and what its workers have begun."""

from __future__ import annotations

import errno
import subprocess
import threading
import time

import pytest

from flux_endpoint.engine.workers import outbox
from flux_endpoint.engine.workers.backlog import most_held
from flux_endpoint.engine.workers.begun import BegunRecord, BegunTasks
from flux_endpoint.engine.workers.files import ManagerFiles
from flux_endpoint.engine.workers.outbox import EndsOutbox
from flux_endpoint.engine.workers.recovery import Recovery
from flux_endpoint.engine.workers.spool import Spool, read_spool

PATIENCE = 30


@pytest.fixture
def path(tmp_path):
    return tmp_path / "workers-m.results"


@pytest.fixture
def box(path):
    return EndsOutbox(Spool(path))


def contents(path):
    return [(end.header["id"], end.body()) for end in read_spool(path)]


def taken(box):
    return [header["id"] for header, _ in box.take()]


def test_an_end_that_was_being_written_is_left_out(path):
    spool = Spool(path)
    spool.add({"id": "a"}, b"1" * 1000)
    spool.add({"id": "b"}, b"2" * 1000)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 1000, len(whole) - 1010, 1100):
        path.write_bytes(whole[:length])
        assert contents(path) == [("a", b"1" * 1000)]
    path.write_bytes(b"")
    assert contents(path) == []
    path.write_bytes(b"\xff" * 2000)
    assert contents(path) == []


def test_without_an_agent_results_go_to_disk_and_are_sent_until_confirmed(box, path):
    box.add({"id": "a"}, b"1")
    assert taken(box) == ["a"]
    assert not path.exists()
    box.lose_agent()
    box.add({"id": "b"}, b"2")
    assert contents(path) == [("a", b"1"), ("b", b"2")]
    box.meet_agent()
    assert box.take() == [({"id": "a"}, b"1"), ({"id": "b"}, b"2")]
    box.settle(["a"])
    assert box.task_ids == ["b"]
    assert path.exists()
    box.settle(["b", "unknown"])
    assert not path.exists()
    assert len(box) == 0


def test_unsent_results_in_memory_and_on_the_wire_are_bounded(box, monkeypatch):
    monkeypatch.setattr(outbox, "_WINDOW", 1000)
    monkeypatch.setattr(outbox, "_MAX_IN_MEMORY", 3000)
    for name in "abcd":
        assert not box.is_full
        box.add({"id": name}, b"x" * 800)
    assert box.is_full
    assert taken(box) == ["a"]
    assert taken(box) == []
    box.settle(["a"])
    assert not box.is_full
    assert taken(box) == ["b"]
    box.lose_agent()
    assert not box.is_full


def test_on_a_full_disk_ends_stay_in_memory(box, path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "add", full)
    box.add({"id": "a"}, b"1")
    box.lose_agent()
    box.meet_agent()
    assert box.take() == [({"id": "a"}, b"1")]


def test_a_result_that_can_not_be_read_from_disk_is_reported_as_lost(box, path):
    box.lose_agent()
    box.add({"id": "a"}, b"1")
    path.write_bytes(b"")
    box.meet_agent()
    [(header, body)] = box.take()
    assert header == {"id": "a", "end": "lost"}
    assert b"can't be read from disk" in body


def test_the_latest_begun_tasks_are_kept_beyond_the_capacity(tmp_path):
    begun, most = BegunTasks(tmp_path / "begun", 2), most_held(2)
    for number in range(3 * most):
        begun.note(1, f"task {number}")
    record = BegunRecord(tmp_path / "begun")
    kept = {number for number in range(3 * most) if f"task {number}" in record}
    assert kept == set(range(2 * most, 3 * most))
    assert "another" not in record


def test_files_are_kept_until_all_their_results_are_settled_or_unwanted(tmp_path):
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        spool = Spool(path)
        spool.add({"id": f"wanted in {path.name}"}, b"")
        spool.add({"id": f"unwanted in {path.name}"}, b"")
    recovery = Recovery((), [end for path in paths for end in read_spool(path)], 0.0)
    assert recovery.end("wanted in one") is not None
    recovery.complete()
    assert [path.exists() for path in paths] == [True, False]
    recovery.settle(["wanted in one"])
    assert not paths[0].exists()


def test_waiting_for_the_end_of_a_manager_has_a_timeout(tmp_path):
    files = ManagerFiles(tmp_path, "m")
    assert files.await_end(0.0)  # it has not begun
    files.lock.touch()
    assert files.await_end(PATIENCE)
    holder = subprocess.Popen(
        ["flock", str(files.lock), "sh", "-c", "echo held; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    assert not files.await_end(0.2)
    threading.Timer(0.3, holder.communicate, [b"end\n"]).start()
    begun = time.monotonic()
    assert files.await_end(PATIENCE)
    assert 0.2 < time.monotonic() - begun < PATIENCE / 2
