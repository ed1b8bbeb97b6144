"""One contract, two executors: every test here runs on `LocalExecutor` and on a real Flux."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import FluxWorld, LocalWorld, Recorder, World, text


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


@pytest.fixture
def idle(world: World) -> None:
    """Nothing is allocated any more: a job's result is there before its resources are free."""
    Recorder(world.executor.submit(text("true", nodes=world.nodes, exclusive=True))).wait("free")
