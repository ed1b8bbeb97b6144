"""An endpoint's surroundings: the broker with a service on it, a home on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from endpoint_world import ObedientEngine, Service
from service_process import ServiceProcess, run

from flux_endpoint.endpoint.directory import EndpointDirectory
from ports import reserved_port


@pytest.fixture(scope="session")
def endpoints_vhost(broker: Any) -> Iterator[str]:
    """URL of a virtual host for many tests: each has an endpoint, and so queues, of its own."""
    with broker.virtual_host("endpoint-tests") as url:
        yield url


@pytest.fixture
def service(endpoints_vhost: str) -> Iterator[Service]:
    service = Service(endpoints_vhost)
    yield service
    service.connection.close()


@pytest.fixture
def engine() -> ObedientEngine:
    return ObedientEngine()


@pytest.fixture
def held_engine() -> ObedientEngine:
    """An engine whose tasks end when the test says so."""
    return ObedientEngine(hold=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `$FLUX_ENDPOINT_HOME` of its own; neither credentials nor Flux in the environment."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(path))
    monkeypatch.delenv("FLUX_ENDPOINT_SERVICE_URL", raising=False)
    monkeypatch.delenv("FLUX_ENDPOINT_TOKEN", raising=False)
    monkeypatch.delenv("FLUX_URI", raising=False)
    return path


@pytest.fixture
def lab(home: Path) -> Iterator[EndpointDirectory]:
    """A configured endpoint, stopped at the end whatever happened."""
    run("configure", "lab")
    yield EndpointDirectory("lab")
    run("stop", "lab")


@pytest.fixture(scope="session")
def service_process(
    tmp_path_factory: pytest.TempPathFactory, broker: Any
) -> Iterator[ServiceProcess]:
    """The real service, running."""
    with broker.virtual_host("endpoint-tests") as url, reserved_port() as port:
        process = ServiceProcess(tmp_path_factory.mktemp("service"), url, port)
        process.start()
        yield process
        process.stop()
