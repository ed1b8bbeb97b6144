"""The plugin's record of accepted tasks, when it is damaged."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.errors import RecordError
from flux_endpoint.integrations.globus_compute.record import PluginTaskRecord

TASKS = [EngineTask(f"t{n}", "f", "x" * 2000, {"num_nodes": n}, ["a.B"]) for n in range(40)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.db"
    with closing(PluginTaskRecord(path)) as record:
        for each in TASKS:
            record.accept(each)
        record.finish(EngineResult("t0", b"r"))
    return path


def test_the_record_is_read_back_completely(path: Path) -> None:
    with closing(PluginTaskRecord(path)) as record:
        assert record.unfinished() == TASKS[1:]
        assert record.result("t0") == b"r"
    assert list(path.parent.glob("*damaged*")) == []


@pytest.mark.parametrize(
    "change", ["buffer = x'00'", "resource_specification = '{'", "result_serializers = '1'"]
)
def test_a_damaged_row_loses_only_that_row(path: Path, change: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"UPDATE tasks SET {change} WHERE task_id = 't7'")
    with closing(PluginTaskRecord(path)) as record:
        assert record.unfinished() == [*TASKS[1:7], *TASKS[8:]]
        assert [each.body for each in record.fresh_results()] == [b"r"]
    assert list(path.parent.glob("tasks.db.damaged-*"))


def test_a_file_that_is_not_a_record_is_moved_away(path: Path) -> None:
    for each in path.parent.glob("tasks.db?*"):
        each.unlink()
    path.write_bytes(b"garbage" * 1000)
    with closing(PluginTaskRecord(path)) as record:
        assert record.unfinished() == []
        record.accept(TASKS[0])


def test_damage_while_it_is_open_is_one_error_that_names_it(path: Path) -> None:
    with closing(PluginTaskRecord(path)) as record:
        with closing(sqlite3.connect(path)) as database:
            database.execute("DROP TABLE results")
        for act in (record.fresh_results, lambda: record.result("t0"), lambda: record.forget(0)):
            with pytest.raises(RecordError, match=r"the record of tasks .*tasks\.db: .*damaged"):
                act()
