"""The end of a log file, and what comes: written on, begun anew, replaced."""

from __future__ import annotations

import os
import threading

import pytest

from flux_endpoint.cli import follow as module
from flux_endpoint.cli.follow import FollowedFile, Watcher, follow


@pytest.fixture
def watcher(monkeypatch):
    """One that wakes by the kernel's word alone."""
    monkeypatch.setattr(module, "RECHECK", 3600)
    watcher = Watcher()
    yield watcher
    watcher.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.log"


@pytest.fixture
def file(path, watcher):
    file = FollowedFile(path, watcher)
    yield file
    file.close()


def write(path, text, mode="a"):
    with path.open(mode) as stream:
        stream.write(text)


@pytest.mark.parametrize(
    ("content", "count", "lines"),
    [
        ("", 5, []),
        ("a\nb\nc\n", 0, []),
        ("a\nb\nc\n", 2, ["b", "c"]),
        ("a\nb\nc\n", 9, ["a", "b", "c"]),
        ("\n\na\n\n", 3, ["", "a", ""]),
        ("a\nb\nc", 2, ["b", "c"]),
        ("a\nb\nc", 1, ["c"]),
        ("alone", 3, ["alone"]),
        ("a\r\nb\r\n", 1, ["b"]),
    ],
)
def test_the_last_lines_are_as_many_as_asked_for(file, path, content, count, lines):
    path.write_bytes(content.encode())
    assert file.last_lines(count) + (file.rest() if count else []) == lines


def test_long_files_and_long_lines_are_read_from_their_end(file, path):
    line = "x" * 1000
    path.write_text("".join(f"{n} {line}\n" for n in range(1000)))
    assert file.last_lines(150) == [f"{n} {line}" for n in range(850, 1000)]
    assert file.new_lines() == []


def test_invalid_utf8_is_shown_with_replacement_characters(file, path):
    path.write_bytes(b"\xff\xfe caf\xc3\xa9\n")
    assert file.last_lines(1) == ["\ufffd\ufffd café"]


def test_a_missing_file_has_no_lines_until_it_is_there(file, path):
    assert file.last_lines(5) == []
    assert file.new_lines() == []
    write(path, "born\n")
    assert file.new_lines() == ["born"]


def test_a_line_is_returned_once_it_is_complete(file, path):
    write(path, "a\n")
    assert file.last_lines(5) == ["a"]
    write(path, "b")
    assert file.new_lines() == []
    write(path, "c\nd\n")
    assert file.new_lines() == ["bc", "d"]


def test_a_file_that_replaces_another_is_read_from_its_start(file, path):
    write(path, "old\n")
    file.last_lines(5)
    write(path, "the end")
    path.rename(path.with_suffix(".log.1"))
    write(path.with_suffix(".log.1"), " of the old\n")
    assert file.new_lines() == ["the end of the old"]
    write(path, "new\n")
    assert file.new_lines() == ["new"]


def test_the_last_lines_before_a_file_is_replaced_are_not_lost(file, path, monkeypatch):
    write(path, "first\n")
    file.last_lines(0)
    look = file._was_replaced

    def replaced_meanwhile():
        monkeypatch.setattr(file, "_was_replaced", look)
        write(path, "last\nand a half")
        path.rename(path.with_suffix(".log.1"))
        write(path, "new\n")
        return look()

    monkeypatch.setattr(file, "_was_replaced", replaced_meanwhile)
    assert file.new_lines() == ["last", "and a half", "new"]


def test_a_truncated_file_is_read_from_its_start(file, path):
    write(path, "a long line of before\n")
    file.last_lines(5)
    write(path, "new\n", mode="w")
    assert file.new_lines() == ["new"]


def test_following_wakes_for_each_change_without_polling(tmp_path, watcher):
    paths = [tmp_path / "a.log", tmp_path / "b.log"]
    files = [FollowedFile(path, watcher) for path in paths]
    write(paths[0], "0\n")
    for each in files:
        each.last_lines(5)
    lines = follow(files, watcher)
    steps = [
        (lambda: write(paths[0], "1\n"), (0, "1")),
        (lambda: write(paths[1], "2 and more\n"), (1, "2 and more")),  # it did not exist
        (lambda: paths[0].rename(tmp_path / "old"), None),
        (lambda: write(paths[0], "3\n"), (0, "3")),
        (lambda: write(paths[1], "4\n", mode="w"), (1, "4")),
    ]
    for act, expected in steps:
        timer = threading.Timer(0.05, act)  # while it waits, or before: it must not matter
        timer.start()
        if expected is not None:
            assert next(lines) == expected
        timer.join()
    for each in files:
        each.close()


def test_following_ends_when_its_output_is_closed(tmp_path, watcher):
    reading, writing = os.pipe()
    watcher.watch_reader(writing)
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        next(follow([FollowedFile(tmp_path / "a.log", watcher)], watcher))
    os.close(writing)


def test_without_inotify_following_polls(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RECHECK", 0.01)
    watcher = Watcher()
    os.close(watcher._descriptor)
    watcher._poll.unregister(watcher._descriptor)
    watcher._descriptor = -1
    lines = follow([FollowedFile(tmp_path / "a.log", watcher)], watcher)
    write(tmp_path / "a.log", "seen\n")
    assert next(lines) == (0, "seen")
