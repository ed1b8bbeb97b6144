"""A site for the plugins: a service, Flux instances with a configuration, endpoints in them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "endpoint"))

from service_process import ServiceProcess
from site_world import Site

from ports import reserved_port


@pytest.fixture(scope="session")
def site_service(tmp_path_factory: pytest.TempPathFactory, broker: Any) -> Iterator[ServiceProcess]:
    """The service, on a virtual host of its own."""
    with broker.virtual_host("site-tests") as url, reserved_port() as port:
        process = ServiceProcess(tmp_path_factory.mktemp("service"), url, port)
        process.start()
        yield process
        process.stop()


@pytest.fixture(scope="module")
def bare_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site without a service, for what needs none."""
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, site_service: ServiceProcess) -> Site:
    """A site whose user has credentials for the service."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.log_in(site_service.url, site_service.credentials.token)
    return site


@pytest.fixture
def as_user(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site, with this process configured as its user's."""
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(site.home))
    monkeypatch.delenv("FLUX_ENDPOINT_SERVICE_URL", raising=False)
    monkeypatch.delenv("FLUX_ENDPOINT_TOKEN", raising=False)
    return site


@pytest.fixture(scope="module")
def start_instance() -> Iterator[Callable[..., str]]:
    """Starts Flux instances that end with the module's tests; returns their URIs."""
    with ExitStack() as stack:

        def start(site: Site, config: str = "", *, size: int = 1, **environment: str) -> str:
            return stack.enter_context(site.instance(config, size=size, **environment))

        yield start
