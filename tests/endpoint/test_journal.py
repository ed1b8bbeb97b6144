"""The journal: what it promises to remember, and to forget."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.errors import FluxEndpointError

TASK = EngineTask("t1", "f1", "buffer", {"num_nodes": 2}, ["a.B"])
PLAIN = EngineTask("t2", "f1", "buffer")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_accepted_tasks_come_back_whole_and_in_order(path: Path) -> None:
    journal = Journal(path)
    with journal.batch():
        journal.accept([TASK, PLAIN])
    journal.close()
    journal = Journal(path)
    assert list(journal.pending()) == [TASK, PLAIN]
    journal.close()


def test_a_result_takes_the_place_of_its_task_until_it_is_confirmed(path: Path) -> None:
    journal = Journal(path)
    with journal.batch():
        journal.accept([TASK, PLAIN])
        journal.finish([EngineResult("t1", b"body")])
    assert list(journal.pending()) == [PLAIN]
    assert journal.unpublished() == ["t1"]
    assert journal.result("t1") == b"body"
    assert journal.done(["t1", "t2"]) == set()
    with journal.batch(durable=False):
        journal.confirmed(["t1"])
    assert journal.unpublished() == []
    assert journal.done(["t1", "t2"]) == {"t1"}
    with pytest.raises(KeyError):
        journal.result("t1")
    journal.close()


def test_a_batch_that_fails_leaves_nothing_behind(path: Path) -> None:
    journal = Journal(path)

    def broken() -> Iterator[EngineTask]:
        yield TASK
        raise RuntimeError("midway")

    def attempt() -> None:
        with journal.batch():
            journal.finish([EngineResult("t0", b"")])
            journal.accept(broken())

    with pytest.raises(RuntimeError, match="midway"):
        attempt()
    assert list(journal.pending()) == []
    assert journal.unpublished() == []
    with journal.batch():
        journal.accept([PLAIN])
    assert list(journal.pending()) == [PLAIN]
    journal.close()


def test_of_finished_ids_only_the_last_ones_are_remembered(path: Path) -> None:
    journal = Journal(path, max_done=10)
    for first in range(0, 100, 5):
        with journal.batch():
            journal.confirmed([str(number) for number in range(first, first + 5)])
    remembered = journal.done([str(number) for number in range(100)])
    assert {str(number) for number in range(90, 100)} <= remembered
    assert len(remembered) <= 20
    journal.close()


def test_numbers_of_finished_ids_go_on_after_a_restart(path: Path) -> None:
    for task_id in ("a", "b"):
        journal = Journal(path)
        with journal.batch():
            journal.confirmed([task_id])
        assert task_id in journal.done(["a", "b"])
        journal.close()
    journal = Journal(path)
    assert journal.done(["a", "b"]) == {"a", "b"}
    journal.close()


def test_a_full_disk_is_one_error_that_names_the_journal(path: Path) -> None:
    journal = Journal(path)
    (pages,) = journal._database.execute("PRAGMA page_count").fetchone()
    journal._database.execute(f"PRAGMA max_page_count = {pages + 2}")
    with (
        pytest.raises(FluxEndpointError, match=r"can't write the journal .*journal\.db.*full"),
        journal.batch(),
    ):
        journal.accept([EngineTask("t9", "f", "x" * 1_000_000)])
    assert list(journal.pending()) == []
    journal.close()


def test_a_damaged_file_is_named(path: Path) -> None:
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(FluxEndpointError, match=r"can't open the journal .*journal\.db"):
        Journal(path)


def test_a_layout_of_another_release_is_left_alone(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(FluxEndpointError, match="layout 99"):
        Journal(path)
