"""Expired objects go; all others stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flux_endpoint import paths
from flux_endpoint.data import SharedDirectory, cleaning, known_stores
from flux_endpoint.data.directory import GRACE
from flux_endpoint.endpoint.expired_data import ExpiredData
from waiting import until

HOUR = 3600.0


def age(path: Path, seconds: float) -> Path:
    """Set the end of a lifetime to some time ago."""
    os.utime(path, (time.time(),) * 2)
    os.utime(path, (time.time(), time.time() - seconds))
    return path


@pytest.fixture
def old(store: SharedDirectory) -> Path:
    """An expired object beside one that is not."""
    store.put("old")
    (file,) = store.directory.iterdir()
    store.put("new")
    return age(file, GRACE + 60)


def test_what_has_expired_goes(old, store):
    assert cleaning.prune() == 1
    assert not old.exists()
    assert len(list(store.directory.iterdir())) == 1
    assert cleaning.prune() == 0


def test_what_has_expired_lately_stays(old):
    age(old, GRACE - 60)
    assert cleaning.prune() == 0
    assert old.exists()


def test_what_is_written_again_meanwhile_stays(old, store, monkeypatch):
    rename = Path.rename

    def written_first(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        store.put("old")
        return self.rename(target)

    monkeypatch.setattr(Path, "rename", written_first)
    assert cleaning.prune() == 0
    assert old.stat().st_mtime > time.time()


def test_what_another_program_removes_meanwhile_is_no_error(old, monkeypatch, caplog):
    rename = Path.rename

    def taken(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        self.rename(target).unlink()
        return target

    monkeypatch.setattr(Path, "rename", taken)
    assert cleaning.prune() == 0
    assert not caplog.text


def test_other_files_are_not_touched(old, store):
    others = [
        store.directory / name
        for name in ("results.data", "0" * 64, f"{'0' * 64}.txt", ".hidden.partial")
    ]
    for each in others:
        each.write_text("mine")
        age(each, 1e6)
    (store.directory / f"{'1' * 64}.data").mkdir()
    (store.directory / f"{'2' * 64}.data").symlink_to(others[0])
    assert cleaning.prune() == 1
    assert all(each.exists() for each in others)


def test_what_a_killed_program_left_goes_after_a_day(old, store):
    unfinished = store.directory / f".{'a' * 32}.partial"
    unfinished.write_text("half")
    cleaning.prune()
    assert unfinished.exists()
    age(unfinished, 25 * HOUR)
    cleaning.prune()
    assert not unfinished.exists()


def test_content_is_counted(old, store, tmp_path):
    SharedDirectory(tmp_path / "other", lifetime="infinity").put(1)
    here, other = sorted(cleaning.contents(), key=lambda each: each.store, reverse=True)
    assert (here.store, here.objects, here.expired) == (str(store.directory), 2, 1)
    assert here.size == sum(each.stat().st_size for each in store.directory.iterdir())
    assert abs(here.next_end - time.time() - 7 * 24 * HOUR) < 600
    assert (other.objects, other.expired, other.next_end) == (1, 0, None)


def test_a_store_that_is_gone_is_forgotten_but_not_while_its_disk_is_away(old, store, tmp_path):
    store.directory.rename(tmp_path / "moved")
    (content,) = cleaning.contents()
    assert content.reason == "No such file or directory"
    (tmp_path / "moved").rename(store.directory)
    inner = SharedDirectory(store.directory / "disk" / "store", lifetime="1d")
    inner.directory.parent.mkdir()
    inner.put(1)
    inner.directory.parent.rename(tmp_path / "unmounted")
    cleaning.prune()
    assert len(list(cleaning.contents())) == 2
    (tmp_path / "unmounted").rename(inner.directory.parent)
    inner.directory.rename(tmp_path / "gone")
    cleaning.prune()
    assert len(list(cleaning.contents())) == 1


def test_a_damaged_note_is_left_out(old, state, caplog):
    (state / "data" / "directories" / "other.json").write_text("[")
    known_stores.note_object(b"", 60)  # e.g. of a machine that lost its power
    assert cleaning.prune(grace=-HOUR) == 1
    assert "a stored object not removed" in caplog.text


def test_an_endpoint_removes_what_has_expired(old):
    expired = ExpiredData(period=0.05)
    expired.start()
    try:
        assert until(lambda: not old.exists())
    finally:
        expired.close()


def test_an_endpoint_goes_on_if_it_can_not_look(old, monkeypatch, caplog):
    usable = os.environ[paths.HOME_VARIABLE]
    monkeypatch.setenv(paths.HOME_VARIABLE, "/proc/nothing")
    expired = ExpiredData(period=0.05)
    expired.start()
    try:
        assert until(lambda: "expired data not removed" in caplog.text)
        monkeypatch.setenv(paths.HOME_VARIABLE, usable)
        assert until(lambda: not old.exists())
    finally:
        expired.close()
