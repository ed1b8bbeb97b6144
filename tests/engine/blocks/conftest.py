"""Blocks in the Flux instance of the tests: four nodes of two cores."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_world import World

MakeWorld = Callable[..., World]

#: Long enough for everything but what a test is about.
_ROOMY = {"walltime": "5m", "grace": "1m", "idle_timeout": "5m"}


@pytest.fixture(scope="module")
def uri(flux_uri: str) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUX_URI", flux_uri)
        yield flux_uri


@pytest.fixture(autouse=True)
def no_late_finalizers() -> Iterator[None]:
    """Flux's futures fail when they are collected after their broker: here, and not at any time.

    Python 3.11 compiles the failing lines to show them, which breaks a compilation under way.
    """
    yield
    gc.collect()


@pytest.fixture
def make_blocks(uri: str, tmp_path: Path, mark: str) -> Iterator[MakeWorld]:
    """Makes engines of this test's own; takes the options of blocks, and `engine` for others."""
    worlds = []

    def make(directory: Path = tmp_path, engine: dict[str, Any] | None = None, **blocks: Any):
        world = World("flux", directory, blocks={**_ROOMY, **blocks}, **(engine or {}))
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.stop()


@pytest.fixture(scope="module")
def blocks(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An engine with at most two blocks of one node, which the tests of a module share."""
    world = World("flux", tmp_path_factory.mktemp("endpoint"), blocks={**_ROOMY, "max_blocks": 2})
    yield world
    world.stop()
