"""The walkthrough names only existing files, and the number of files on a task's way is limited."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
#: The most files on the way of a task, by heading of the walkthrough.
MOST = {"A function, from `submit` to its future": 50, "An MPI job": 29, "A kill": 14}


def files_of(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_/]+\.py)`", text))


def test_every_named_file_exists() -> None:
    missing = [name for name in files_of(TEXT) if not (ROOT / "src/flux_endpoint" / name).is_file()]
    assert not missing


@pytest.mark.parametrize("heading", MOST)
def test_each_walk_is_short_enough(heading: str) -> None:
    walks = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
    assert 0 < len(files_of(walks[heading])) <= MOST[heading]
