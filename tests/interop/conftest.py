"""Worlds in which the official packages and ours meet."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from tests.interop.official_world import OfficialWorld

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
    vhost = f"test-{uuid.uuid4().hex}"
    broker.ctl("add_vhost", vhost)
    broker.ctl("set_permissions", "-p", vhost, broker.user, ".*", ".*", ".*")
    directory = tmp_path_factory.mktemp("official")
    with reserved_port() as port:
        world = OfficialWorld(directory, broker.vhost_url(vhost), port, official_python, flux_uri)
        try:
            world.start()
            yield world
        finally:
            world.stop()
            broker.ctl("delete_vhost", vhost)
