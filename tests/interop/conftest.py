"""Worlds in which the official packages and ours meet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.interop.official_world import OfficialWorld
from tests.interop.plugin_world import PluginEnvironment

from ports import reserved_port


@pytest.fixture(scope="module", params=["local", pytest.param("flux", marks=pytest.mark.flux)])
def official_world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    official_python: str,
) -> Iterator[OfficialWorld]:
    """Our service and endpoint, on each executor, and the environment of an official user."""
    broker = request.getfixturevalue("broker")
    flux_uri = request.getfixturevalue("flux_uri") if request.param == "flux" else None
    directory = tmp_path_factory.mktemp("official")
    with broker.virtual_host() as url, reserved_port() as port:
        world = OfficialWorld(directory, url, port, official_python, flux_uri)
        try:
            world.start()
            yield world
        finally:
            world.stop()


@pytest.fixture(scope="session")
def environment(plugin_python: str, tmp_path_factory: pytest.TempPathFactory) -> PluginEnvironment:
    """An environment of the official endpoint in which our engine is enabled."""
    made = PluginEnvironment(tmp_path_factory.mktemp("plugin") / "venv", plugin_python)
    made.switch("enable")
    return made
