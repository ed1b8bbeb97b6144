"""One contract, two executors: every test here runs on `LocalExecutor` and on a real Flux."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import FluxWorld, LocalWorld, World


@pytest.fixture(scope="session", params=["local", pytest.param("flux", marks=pytest.mark.flux)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """An executor of four nodes, and what belongs to it."""
    if request.param == "local":
        world: World = LocalWorld()
    else:
        uri = request.getfixturevalue("flux_uri")
        world = FluxWorld(request.getfixturevalue("flux_module"), uri)
    yield world
    world.close()
