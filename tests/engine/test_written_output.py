"""Output that tasks write to files, as it is reported while somebody follows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.engine import written_output
from flux_endpoint.engine.written_output import FollowedFiles, WrittenOutput


@pytest.fixture
def output(tmp_path):
    return WrittenOutput((tmp_path / "out", tmp_path / "err"))


@pytest.fixture
def eager(monkeypatch):
    """Each look is due at once."""
    monkeypatch.setattr(written_output, "LOOK_PAUSE", 0.0)


@given(st.lists(st.text("aä\n€", max_size=9), max_size=20), st.integers(8, 40), st.integers(0, 9))
def test_parts_and_the_end_give_each_byte_once(tmp_path_factory, texts, most, before):
    directory = tmp_path_factory.mktemp("task")
    output = WrittenOutput((directory / "out", directory / "err"), (before, 0))
    output.paths[0].write_bytes(b"x" * before)
    whole = "".join(texts).encode()
    sent, position = [0, 0], 0
    with output.paths[0].open("ab", buffering=0) as file:
        for at in range(0, len(whole), 5):
            file.write(whole[at : at + 5])
            for name, (begin, end, text) in output.parts(sent, most).items():
                assert name == "stdout"
                assert position <= begin < end == sent[0]
                assert whole[begin:end].decode() == text
                assert end - begin <= most
                position = end
    assert len(whole) - position <= 3  # the beginning of a character
    tail, nothing = output.tails(most)
    assert tail.total == len(whole)
    assert nothing.total == 0
    assert tail.text == whole[tail.dropped :].decode(errors="backslashreplace")


def test_one_report_has_a_limited_part_of_a_stream(output):
    output.paths[0].write_text("x" * 150_000)
    sent, ends = [0, 0], []
    while parts := output.parts(sent, 1 << 20):
        begin, end, text = parts["stdout"]
        assert len(text) == end - begin <= 1 << 16
        ends.append(end)
    assert ends == [65_536, 131_072, 150_000]


def test_another_attempt_is_reported_from_its_beginning(output):
    output.paths[0].write_text("again\n")
    assert output.parts([100, 0], 99) == {"stdout": (0, 6, "again\n")}


def test_what_was_not_reported_in_time_is_left_out_by_whole_lines(output):
    output.paths[0].write_text("".join(f"line {number:04}\n" for number in range(100)))
    assert output.parts([0, 0], 25) == {"stdout": (980, 1000, "line 0098\nline 0099\n")}


@pytest.mark.parametrize("path", ["none", "/", "a\0b", "\ud800", "x" * 5000])
def test_what_is_no_file_is_not_read(path):
    output = WrittenOutput((Path(path), Path(path)), (0, 2**70))
    assert output.parts([0, 0], 99) == {}
    assert [tail.total for tail in output.tails(99)] == [0, 0]


def test_only_regular_files_are_read(output):
    os.mkfifo(output.paths[0])
    output.paths[1].mkdir()
    assert output.parts([0, 0], 99) == {}
    assert [tail.total for tail in output.tails(99)] == [0, 0]


@pytest.mark.usefixtures("eager")
def test_files_are_looked_at_only_while_a_task_that_may_write_is_followed(output):
    files = FollowedFiles(99)
    assert files.due == float("inf")
    output.is_open = False
    files.follow("task", output, 3600, (1, 0))
    assert files.due == float("inf")
    output.paths[0].write_text("one")
    assert files.look() == []
    output.is_open = True
    assert files.look() == [("task", {"stdout": (1, 3, "ne")})]
    assert files.look() == []
    files.forget("task")
    assert files.due == float("inf")
    files.follow("task", output, -1, (0, 0))  # its time is over
    assert files.look() == []
    assert files.due == float("inf")
    nothing = FollowedFiles(0)
    nothing.follow("task", output, 3600, (0, 0))
    assert nothing.due == float("inf")


def test_a_task_that_nobody_follows_any_more_makes_room_for_another(output, monkeypatch):
    monkeypatch.setattr(written_output, "MOST_FOLLOWED", 1)
    files = FollowedFiles(99)
    files.follow("waiting", WrittenOutput(output.paths, is_open=False), -1, (0, 0))
    output.paths[0].write_text("one")
    files.follow("running", output, 3600, (0, 0))
    assert files.look() == [("running", {"stdout": (0, 3, "one")})]


def test_files_are_looked_at_five_times_a_second_at_most(output):
    files = FollowedFiles(99)
    files.follow("task", output, 3600, (0, 0))
    files.look()
    output.paths[0].write_text("one")
    assert files.look() == []


@pytest.mark.usefixtures("eager")
def test_one_look_reports_a_limited_amount_and_the_next_one_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(written_output, "_MOST_OF_LOOK", 100_000)
    files = FollowedFiles(1 << 20)
    for number in range(4):
        output = WrittenOutput((tmp_path / str(number), tmp_path / "none"))
        output.paths[0].write_text("x" * 50_000)
        files.follow(str(number), output, 3600, (0, 0))
    looks = [[task_id for task_id, _ in files.look()] for _ in range(3)]
    assert looks == [["0", "1"], ["2", "3"], []]
