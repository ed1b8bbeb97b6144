"""Audit logs: private, bounded, one JSON object per line; their errors affect nothing else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from flux_endpoint.audit import LONGEST, AuditLog


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_says_when_and_what(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    audit.write("token created", user="é\n", endpoint_id=None, tasks=3)
    audit.close()
    (record,) = records(path)
    assert record.pop("time").endswith("Z")
    assert record == {"event": "token created", "user": "é\n", "tasks": 3}
    assert path.stat().st_mode & 0o777 == 0o600


def test_long_texts_are_cut(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "a")
    audit.write("x", user="u" * 10_000)
    assert records(tmp_path / "a")[0]["user"] == "u" * LONGEST


def test_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path, size=1000, kept=2)
    for number in range(200):
        audit.write("x", number=number)
    files = sorted(tmp_path.iterdir())
    assert [each.name for each in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(each.stat().st_size <= 1000 for each in files)
    assert all(each.stat().st_mode & 0o777 == 0o600 for each in files)
    numbers = [record["number"] for each in reversed(files) for record in records(each)]
    assert numbers == list(range(200 - len(numbers), 200))


def test_a_renamed_file_is_created_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    audit.write("first")
    path.replace(tmp_path / "elsewhere")
    audit.write("second")
    assert [record["event"] for record in records(path)] == ["second"]


def test_an_unwritable_file_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    path = tmp_path / "missing" / "audit.jsonl"
    audit = AuditLog(path)
    audit.write("lost")
    audit.write("lost")
    assert [record.message for record in caplog.records] == ["the audit log can't be written"]
    path.parent.mkdir()
    audit.write("kept")
    assert [record["event"] for record in records_of_lines(path)] == ["kept"]
    path.unlink()
    path.symlink_to("/dev/full")  # it must not follow a link
    audit.write("lost")
    assert len(caplog.records) == 2


def records_of_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def test_without_a_file_there_are_no_records() -> None:
    AuditLog(None).write("x")
