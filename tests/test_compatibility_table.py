"""The compatibility page has no empty cells, and names only existing files and tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| promise")
]


def test_the_table_has_rows():
    assert len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_each_promise_has_its_place_and_its_test(row):
    promise, places, shown = row
    assert promise
    for place in re.findall(r"`([^`]+)`", places) or [""]:
        assert (ROOT / "src" / "flux_endpoint" / place).is_file(), place
    tests = re.findall(r"`([^`]+)`", shown)
    assert tests
    for test in tests:
        name, *parts = test.split("::")
        path = ROOT / "tests" / ("examples/test_guides.py" if name == "G" else name)
        text = path.read_text(encoding="utf-8")
        *classes, function = parts
        assert f"def {function}(" in text, test
        for cls in classes:
            assert f"class {cls}" in text, test
