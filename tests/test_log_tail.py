"""The end of a log in error messages."""

from __future__ import annotations

from pathlib import Path

from flux_endpoint.logs import tail


def test_the_last_lines_are_indented_and_empty_ones_do_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\n\n   \nthr\xffee  \n\n")
    assert tail(log, 2) == "    two\n    thr\ufffdee"


def test_the_number_of_bytes_read_is_limited(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a" * 100 + "\nlast")
    assert tail(log, 20, 7) == "    aa\n    last"


def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == ""


def test_a_log_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    assert tail(tmp_path) == f"    ({tmp_path} can't be read: Is a directory)"
