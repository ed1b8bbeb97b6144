"""One engine, two executors: tests that take `kind` run on the embedded one and on a real Flux."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_world import PATIENCE, World, marked
from memory_cgroup import MemoryCgroup

from flux_endpoint.engine.flux_backend import FluxBackend
from flux_endpoint.engine.workers import manager_registry, sizing

#: Like the Flux instance of the tests: several nodes of two cores.
_LOCAL = {"local_nodes": 4, "local_cores_per_node": 2}

MakeWorld = Callable[..., World]


@pytest.fixture(scope="module", params=["local", pytest.param("flux", marks=pytest.mark.flux)])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which executor runs the jobs; Flux is the one that `FLUX_URI` names from now on."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "flux":
            patch.setenv("FLUX_URI", request.getfixturevalue("flux_uri"))
        else:
            patch.delenv("FLUX_URI", raising=False)
        yield request.param


def _world(kind: str, directory: Path, config: dict[str, Any]) -> World:
    defaults = dict(_LOCAL) if kind == "local" else {}
    return World(kind, directory, **(defaults | config))


@pytest.fixture(scope="module")
def world(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An engine that the tests of a module share."""
    world = _world(kind, tmp_path_factory.mktemp("endpoint"), {"max_nodes": 1})
    yield world
    world.stop()


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A text by which the processes that this test's engines start are known."""
    text = uuid.uuid4().hex
    monkeypatch.setenv("ENGINE_TEST_MARK", text)
    yield text
    for process in marked(text):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture
def make_world(kind: str, tmp_path: Path, mark: str) -> Iterator[MakeWorld]:
    """Makes engines of this test's own."""
    worlds = []

    def make(directory: Path = tmp_path, **config: Any) -> World:
        bound = {} if "max_workers" in config else {"max_nodes": 1}
        world = _world(kind, directory, bound | config)
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.stop()


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Managers stay as large as may be: none is taken for too large when Flux is slow to start it.

    For tests that count managers, not workers.
    """
    for module in (manager_registry, sizing):
        monkeypatch.setattr(module, "STALLED_AFTER", PATIENCE)


@pytest.fixture
def backend(flux_uri: str) -> Iterator[FluxBackend]:
    """A backend for the tests' Flux instance."""
    backend = FluxBackend(flux_uri)
    yield backend
    backend.close()


@pytest.fixture
def small_memory() -> Iterator[MemoryCgroup]:
    """A control group of the kernel's whose processes soon run out of memory."""
    try:
        group = MemoryCgroup()
    except OSError as error:
        pytest.skip(f"not run: no memory control group can be made here ({error})")
    yield group
    group.close()
