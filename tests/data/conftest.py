"""A state directory of its own for each test of stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from flux_endpoint.data import SharedDirectory
from flux_endpoint.data import directory as directories


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory."""
    home = tmp_path / "home"
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(home))
    directories._compared.clear()
    return home


@pytest.fixture
def store(tmp_path: Path) -> SharedDirectory:
    return SharedDirectory(tmp_path / "store", lifetime="7d", threshold=1000)
