"""`flux-endpoint data`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from flux_endpoint.cli.data import data
from flux_endpoint.data import SharedDirectory
from flux_endpoint.data.directory import GRACE


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(data, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_stores_are_listed_and_cleaned(run, tmp_path):
    assert "no stores are known here" in run("list")
    assert json.loads(run("list", "--json")) == []
    store = SharedDirectory(tmp_path / "store", lifetime="1d")
    store.put("old")
    (old,) = store.directory.iterdir()
    os.utime(old, (0, time.time() - GRACE - 60))
    store.put("new")
    header, row = run("list").splitlines()
    assert header.split() == ["STORE", "OBJECTS", "SIZE", "EXPIRED", "NEXT", "END"]
    assert row.split()[0] == str(store.directory)
    assert row.split()[1:2] + row.split()[-3:] == ["2", "1", "in", "23h"]
    assert run("prune") == "removed: 1 object\n"
    assert json.loads(run("prune", "--json")) == {"removed": 0}
    (content,) = json.loads(run("list", "--json"))
    assert (content["objects"], content["expired"], content["reason"]) == (1, 0, "")


def test_a_store_that_is_away_says_so(run, tmp_path):
    store = SharedDirectory(tmp_path / "store", lifetime="infinity")
    store.put(1)
    assert run("list").splitlines()[1].split()[-1] == "-"
    store.directory.rename(tmp_path / "away")
    assert "No such file or directory" in run("list")
