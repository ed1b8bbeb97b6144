"""The journal: what it promises to remember, and to forget."""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from os import truncate
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from flux_endpoint import sqlite_file
from flux_endpoint.endpoint.journal import LAYOUT, Journal
from flux_endpoint.endpoint.retries import Attempts
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.errors import FluxEndpointError, RecordError
from flux_endpoint.protocol.messages import Result, pack
from flux_endpoint.protocol.run_options import RunOptions
from flux_endpoint.sqlite_file import examine

OPTIONS = RunOptions(retries=3, retry_on=("lost", 75), retry_delay=2.0)
F1 = "c04b4f0a-1d5e-4c8e-9d0c-6f1d2f6c5a01"
T0, T1, T2, T3 = (f"0000000{n}-59b6-4b0f-8f3f-2b8d1c6b7e11" for n in range(4))
TASK = EngineTask(T1, F1, "buffer", {"num_nodes": 2}, ["a.B"])
PLAIN = EngineTask(T2, F1, "buffer")


def result_of(task_id: str, data: str = "ran") -> EngineResult:
    return EngineResult(task_id, pack(Result(task_id=UUID(task_id), data=data)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_accepted_tasks_are_read_back_complete_and_in_order(path: Path) -> None:
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
        journal.finish([result_of(T1)])
    assert list(journal.pending()) == [PLAIN]
    assert journal.unpublished() == [T1]
    assert journal.result(T1) == result_of(T1).body
    assert journal.done([T1, T2]) == set()
    assert journal.held() == {T1, T2}
    with journal.batch(durable=False):
        journal.confirmed([T1])
    assert journal.unpublished() == []
    assert journal.done([T1, T2]) == {T1}
    with pytest.raises(KeyError):
        journal.result(T1)
    journal.close()


def test_options_and_attempts_stay_until_the_task_has_ended(path: Path) -> None:
    task = replace(TASK, options=OPTIONS)
    journal = Journal(path)
    with journal.batch():
        journal.accept([task, PLAIN])
    assert journal.attempts() == [Attempts(T1, OPTIONS)]
    waits = Attempts(T1, OPTIONS, ("one", "two"), due=1.5)
    with journal.batch():
        journal.attempted([waits])
    journal.close()
    journal = Journal(path)
    assert list(journal.pending()) == [task, PLAIN]
    assert journal.task(T1) == task
    assert journal.task(T2) == PLAIN
    assert journal.attempts() == [waits]
    last = replace(waits, due=None, is_last=True)
    with journal.batch():
        journal.attempted([last])
    assert journal.attempts() == [last]
    with journal.batch():
        journal.finish([result_of(T1), result_of(T2)])
    assert journal.attempts() == []
    with pytest.raises(KeyError):
        journal.task(T1)
    journal.close()


def test_the_journal_of_an_earlier_release_gets_what_it_lacks(path: Path) -> None:
    journal = Journal(path)
    with journal.batch():
        journal.accept([TASK])
    journal.close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE run_options")
        database.commit()
    assert not examine(path, LAYOUT).damage
    journal = Journal(path)
    assert list(journal.pending()) == [TASK]
    with journal.batch():
        journal.accept([replace(PLAIN, options=OPTIONS)])
    assert journal.attempts() == [Attempts(T2, OPTIONS)]
    journal.close()
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_batch_that_fails_leaves_nothing_behind(path: Path) -> None:
    journal = Journal(path)

    def broken() -> Iterator[EngineTask]:
        yield TASK
        raise RuntimeError("midway")

    def attempt() -> None:
        with journal.batch():
            journal.finish([result_of(T0)])
            journal.accept(broken())

    with pytest.raises(RuntimeError, match="midway"):
        attempt()
    assert list(journal.pending()) == []
    assert journal.unpublished() == []
    with journal.batch():
        journal.accept([PLAIN])
    assert list(journal.pending()) == [PLAIN]
    journal.close()


def test_only_the_latest_finished_ids_are_kept(path: Path) -> None:
    journal = Journal(path, max_done=10)
    for first in range(0, 100, 5):
        with journal.batch():
            journal.confirmed([str(number) for number in range(first, first + 5)])
    remembered = journal.done([str(number) for number in range(100)])
    assert {str(number) for number in range(90, 100)} <= remembered
    assert len(remembered) <= 20
    journal.close()


def test_old_finished_ids_are_forgotten_after_a_restart(path: Path) -> None:
    for keep, left in ((math.inf, {T1, T2}), (3600.0, {T2})):
        journal = Journal(path)
        with journal.batch():
            journal.confirmed([T1])
        journal.close()
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE done SET at = at - 7200")
        journal = Journal(path, keep_done=keep)
        with journal.batch():
            journal.confirmed([T2])
        assert journal.done([T1, T2]) == left
        journal.close()
        path.unlink()


def test_numbers_of_finished_ids_go_on_after_a_restart(path: Path) -> None:
    for task_id in (T1, T2):
        journal = Journal(path)
        with journal.batch():
            journal.confirmed([task_id])
        assert task_id in journal.done([T1, T2])
        journal.close()
    journal = Journal(path)
    assert journal.done([T1, T2]) == {T1, T2}
    journal.close()


def test_a_full_disk_is_one_error_that_names_the_journal(path: Path) -> None:
    journal = Journal(path)
    (pages,) = journal._database.execute("PRAGMA page_count").fetchone()
    journal._database.execute(f"PRAGMA max_page_count = {pages + 2}")
    with (
        pytest.raises(FluxEndpointError, match=r"can't write the journal .*journal\.db.*full"),
        journal.batch(),
    ):
        journal.accept([EngineTask(T3, F1, "x" * 1_000_000)])
    assert list(journal.pending()) == []
    journal.close()


def test_tasks_of_an_earlier_journal_are_accounted_for_once(path: Path) -> None:
    for _ in range(2):
        with closing(Journal(path)) as journal:
            assert journal.lacks_earlier
    with closing(Journal(path)) as journal:
        with journal.batch():
            journal.accept([TASK])
            journal.accounted()
        assert not journal.lacks_earlier
    with closing(Journal(path)) as journal:
        assert not journal.lacks_earlier
    truncate(path, 0)
    with closing(Journal(path)) as journal:
        assert journal.lacks_earlier
        assert journal.held() == set()


def test_the_journal_of_an_earlier_release_lacks_nothing(path: Path) -> None:
    with closing(Journal(path)) as journal, journal.batch():
        journal.accept([TASK])
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE beginnings")
    with closing(Journal(path)) as journal:
        assert list(journal.pending()) == [TASK]
        assert not journal.lacks_earlier


def full_journal(path: Path) -> list[str]:
    """A journal of 160 tasks, some of them large, ten with results; return the ids."""
    ids = [f"{n:08}-59b6-4b0f-8f3f-2b8d1c6b7e11" for n in range(160)]
    with closing(Journal(path)) as journal, journal.batch():
        journal.accept(EngineTask(each, F1, "x" * 3000) for each in ids)
        journal.finish([result_of(each) for each in ids[:10]])
        journal.confirmed(ids[:2])
        journal.accounted()
    return ids


def set_column(path: Path, change: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        assert database.execute(change).rowcount == 1


BAD_TASK = f"UPDATE tasks SET {{}} WHERE task_id LIKE '{77:08}-%'"
BAD_RESULT = f"UPDATE results SET {{}} WHERE task_id LIKE '{5:08}-%'"


@pytest.mark.parametrize(
    "change",
    [
        BAD_TASK.format("resource_specification = '{\"num_nodes\": '"),
        BAD_TASK.format("resource_specification = '[1]'"),
        BAD_TASK.format("result_serializers = '{}'"),
        BAD_TASK.format("buffer = x'ff00'"),
        BAD_TASK.format("buffer = CAST(x'ff41' AS TEXT)"),
        BAD_TASK.format("function_id = 'f'"),
        BAD_TASK.format("attach = '\"x\"'"),
        BAD_TASK.format("task_id = 'someone'"),
        BAD_RESULT.format("body = x'01'"),
        BAD_RESULT.format("body = 'text'"),
        BAD_RESULT.format(f"body = (SELECT body FROM results WHERE task_id LIKE '{6:08}-%')"),
    ],
)
def test_a_damaged_row_loses_only_that_row(
    path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = full_journal(path)
    set_column(path, change)
    lost = ids[77 if "UPDATE tasks" in change else 5]
    found = examine(path, LAYOUT)
    assert found.damage
    with closing(Journal(path)) as journal:
        assert journal.lacks_earlier
        assert journal.held() == set(ids[2:]) - {lost}
        assert [each.task_id for each in journal.pending()] == [e for e in ids[10:] if e != lost]
        assert journal.unpublished() == [each for each in ids[2:10] if each != lost]
        assert journal.done(ids) == set(ids[:2])
    (record,) = [each for each in caplog.records if "was damaged" in each.getMessage()]
    assert record.fields["damage"] == found.damage
    aside = record.fields["aside"]
    assert examine(aside, LAYOUT).damage == found.damage
    assert not examine(path, LAYOUT).damage


@pytest.mark.parametrize("seed", range(12))
def test_damaged_pages_lose_only_their_own_rows(path: Path, seed: int) -> None:
    ids = full_journal(path)
    with closing(sqlite3.connect(path)) as database:  # all of it in the file
        (size,) = database.execute("PRAGMA page_size").fetchone()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    pages = path.stat().st_size // size
    page = random.Random(seed).randrange(1, pages)
    with path.open("r+b") as file:
        file.seek(page * size)
        file.write(b"\xa5" * size)
    damage = examine(path, LAYOUT).damage
    with closing(Journal(path)) as journal:
        held = journal.held() | journal.done(ids)
        assert held <= set(ids)
        # A page of a table has few rows; one above them has many, and what is on both sides stays.
        assert journal.lacks_earlier == bool(damage)
        if not damage:
            assert held == set(ids)
        for each in journal.unpublished():
            assert journal.result(each) == result_of(each).body
        assert all(each.buffer == "x" * 3000 for each in journal.pending())
    with closing(Journal(path)) as journal:
        assert journal.held() | journal.done(ids) == held


@pytest.mark.parametrize("content", [b"something else entirely" * 100, b"SQLite format 3\0" * 90])
def test_a_file_that_is_not_a_journal_is_moved_away(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert examine(path, LAYOUT).damage
    with closing(Journal(path)) as journal:
        assert journal.lacks_earlier
        with journal.batch():
            journal.accept([TASK])
    (aside,) = path.parent.glob("journal.db.damaged-*")
    assert aside.read_bytes() == content


def test_a_journal_without_its_tables_is_moved_away(path: Path) -> None:
    full_journal(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE results")
    assert "no such table" in examine(path, LAYOUT).damage
    with closing(Journal(path)) as journal:
        assert len(journal.held()) == 150


@pytest.mark.parametrize("step", ["link", "replace"])
def test_a_repair_that_is_interrupted_is_done_again_or_finished(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ids = full_journal(path)
    set_column(path, BAD_TASK.format("buffer = x'00'"))
    with monkeypatch.context() as patch:
        where = sqlite_file.os if step == "link" else Path
        real = getattr(where, step)

        def cut(first: Any, second: Any) -> Any:
            if step == "link" or str(first).endswith(".repaired"):
                raise KeyboardInterrupt
            return real(first, second)

        patch.setattr(where, step, cut)
        with pytest.raises(KeyboardInterrupt):
            Journal(path)
    with closing(Journal(path)) as journal:
        assert journal.lacks_earlier
        assert journal.held() == set(ids[2:]) - {ids[77]}
    assert {each.name for each in path.parent.iterdir() if "damaged" not in each.name} == {
        path.name
    }


def test_a_journal_that_is_damaged_while_it_is_open_is_one_error_that_names_it(path: Path) -> None:
    ids = full_journal(path)
    journal = Journal(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE done")
        database.execute("DROP TABLE results")
    for act in (
        lambda: journal.done(ids),
        lambda: journal.result(ids[0]),
        journal.unpublished,
        journal.held,
    ):
        with pytest.raises(RecordError, match=r"can't read the journal .*journal\.db: .*damaged"):
            act()
    with (
        pytest.raises(RecordError, match=r"can't write the journal .*journal\.db: .*damaged"),
        journal.batch(),
    ):
        journal.confirmed(ids[:1])
    journal.close()


def test_a_journal_that_can_not_be_opened_is_not_changed(path: Path) -> None:
    path.mkdir()
    with pytest.raises(RecordError, match=r"can't open the journal .*journal\.db: .+"):
        Journal(path)
    assert path.is_dir()


def test_a_layout_of_another_release_is_not_changed(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(FluxEndpointError, match="layout 99"):
        Journal(path)


def test_the_file_shrinks_after_its_tasks_are_removed(path: Path) -> None:
    journal = Journal(path)
    ids = [str(number) for number in range(200)]
    with journal.batch():
        journal.accept([EngineTask(each, "f", "x" * 100_000) for each in ids])
    with journal.batch():
        journal.finish([EngineResult(each, b"r") for each in ids])
    largest = path.stat().st_size
    for each in ids:
        with journal.batch(durable=False):
            journal.confirmed([each])
        journal.give_back()
    journal.close()
    assert path.stat().st_size < largest / 3
    assert path.with_name("journal.db-wal").exists() is False
