"""Old files that are called after a task go; all others stay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flux_endpoint import paths
from flux_endpoint.endpoint.config import parse_config
from flux_endpoint.endpoint.journal import Journal, has_open
from flux_endpoint.endpoint.task_files import TaskFiles
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.errors import ConfigurationError, FluxEndpointError
from flux_endpoint.logs import MAX_LOG_SIZE, put_aside
from waiting import until

DAY = 86_400.0


def task_id() -> str:
    return str(uuid.uuid4())


def make(path: Path, *, ago: float) -> Path:
    """Make a file, or a directory with one, that was changed last some time ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    os.utime(path, (time.time() - ago,) * 2)
    os.utime(path.parent, (time.time() - ago,) * 2)
    return path


@pytest.fixture
def forget(tmp_path: Path) -> Iterator[Callable[..., TaskFiles]]:
    started: list[TaskFiles] = []

    def start(
        keep: float = 90 * DAY, is_open: Callable[[str], bool] = lambda _: False
    ) -> TaskFiles:
        started.append(TaskFiles(tmp_path / "work", keep, is_open, period=0.05))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.close()


Forget = Callable[..., TaskFiles]


def test_old_files_of_tasks_are_removed_and_others_kept(tmp_path: Path, forget: Forget) -> None:
    work = tmp_path / "work"
    old = [
        make(work / task_id() / "deep" / "file", ago=91 * DAY),
        make(work / f"{task_id()}.stdout", ago=91 * DAY),
        make(work / f"{task_id()}.1a2b3c4d.stderr", ago=91 * DAY),
    ]
    os.utime(old[0].parent.parent, (time.time() - 91 * DAY,) * 2)
    new_inside = make(work / task_id() / "file", ago=89 * DAY)
    os.utime(new_inside.parent, (time.time() - 100 * DAY,) * 2)
    kept = [
        new_inside,
        make(work / f"{task_id()}.stdout", ago=89 * DAY),
        make(work / "results.csv", ago=1000 * DAY),
        make(work / "run" / f"{task_id()}.stdout", ago=1000 * DAY),
        make(work / f"{task_id()}.csv", ago=1000 * DAY),
        make(work / f"of-{task_id()}.stdout", ago=1000 * DAY),
    ]
    forget()
    old[0] = old[0].parent.parent  # the sandbox itself goes last
    until(lambda: not any(path.exists() for path in old))
    time.sleep(0.2)
    assert all(path.exists() for path in kept)


def test_the_target_of_a_link_is_kept(tmp_path: Path, forget: Forget) -> None:
    target = make(tmp_path / "elsewhere" / "file", ago=1000 * DAY)
    link = tmp_path / "work" / task_id()
    link.parent.mkdir()
    link.symlink_to(target.parent)
    os.utime(link, (time.time() - 100 * DAY,) * 2, follow_symlinks=False)
    inside = tmp_path / "work" / task_id()
    inside.mkdir()
    (inside / "link").symlink_to(target.parent)
    os.utime(inside / "link", (time.time() - 100 * DAY,) * 2, follow_symlinks=False)
    os.utime(inside, (time.time() - 100 * DAY,) * 2)
    forget()
    until(lambda: not os.path.lexists(link) and not inside.exists())
    assert target.exists()


def test_files_of_open_tasks_are_kept(tmp_path: Path, forget: Forget) -> None:
    journal = Journal(tmp_path / "journal.db")
    is_open, ended = task_id(), task_id()
    with journal.batch():
        journal.accept([EngineTask(is_open, "f", "b"), EngineTask(ended, "f", "b")])
        journal.finish([EngineResult(ended, b"body")])
    stays = make(tmp_path / "work" / is_open / "file", ago=100 * DAY)
    goes = make(tmp_path / "work" / ended / "file", ago=100 * DAY)
    forget(is_open=lambda each: has_open(tmp_path / "journal.db", each))
    until(lambda: not goes.exists())
    assert stays.exists()
    journal.close()


def test_nothing_is_removed_if_the_open_tasks_are_unknown(tmp_path: Path, forget: Forget) -> None:
    def unknown(_: str) -> bool:
        raise FluxEndpointError("the journal can't be read")

    stays = make(tmp_path / "work" / task_id() / "file", ago=100 * DAY)
    forget(is_open=unknown)
    time.sleep(0.3)
    assert stays.exists()


def test_an_infinite_time_removes_nothing(tmp_path: Path, forget: Forget) -> None:
    stays = make(tmp_path / "work" / task_id() / "file", ago=10_000 * DAY)
    forget(keep=float("inf"))
    time.sleep(0.2)
    assert stays.exists()


def test_the_retention_time_is_a_setting() -> None:
    assert parse_config("", source="c").keep_task_files == 90 * DAY
    assert parse_config("keep_task_files: 30d", source="c").keep_task_files == 30 * DAY
    assert parse_config("keep_task_files: infinity", source="c").keep_task_files == float("inf")
    with pytest.raises(ConfigurationError, match="keep_task_files"):
        parse_config("keep_task_files: soon", source="c")


def test_a_large_log_is_rotated_at_the_next_start(tmp_path: Path) -> None:
    log, before = tmp_path / "endpoint.log", tmp_path / "endpoint.log.1"
    put_aside(log)
    log.write_text("small")
    put_aside(log)
    assert log.read_text() == "small"
    os.truncate(log, MAX_LOG_SIZE + 1)
    put_aside(log)
    assert not log.exists()
    assert before.stat().st_size == MAX_LOG_SIZE + 1


_WRITER = """
import logging, os, subprocess, sys
from flux_endpoint import logs
logs.configure()
log = logging.getLogger("flux_endpoint.test")
other = subprocess.Popen(["sh", "-c", "read line; echo $line >&2"], stdin=subprocess.PIPE)
os.write(2, b"x" * logs.MAX_LOG_SIZE * 2)
log.info("the last of before")
log.info("the first of after")
other.communicate(b"another process\\n")
"""


@pytest.mark.parametrize("where", ["home", "elsewhere", "not to append"])
def test_a_large_log_is_rotated_while_several_processes_write_it(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv(paths.HOME_VARIABLE, str(home))
    log = (tmp_path if where == "elsewhere" else home) / "endpoint.log"
    with log.open("wb" if where == "not to append" else "ab") as file:
        subprocess.run([sys.executable, "-c", _WRITER], stderr=file, check=True)
    if where != "home":
        assert log.stat().st_size > 2 * MAX_LOG_SIZE
        assert [each.name for each in log.parent.glob("endpoint.log*")] == ["endpoint.log"]
        return
    first, second = log.read_text().splitlines()
    assert "the first of after" in first
    assert second == "another process"
    kept = log.with_name("endpoint.log.1")
    assert kept.read_text().endswith("the last of before\n")
    assert MAX_LOG_SIZE < kept.stat().st_size < 1.2 * MAX_LOG_SIZE
    assert kept.stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in home.iterdir()) == ["endpoint.log", "endpoint.log.1"]
