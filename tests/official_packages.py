"""Interpreters with the official Globus Compute packages, for the tests marked `interop`.

The interpreter is that of `.venv-official`, which `make test` creates, or the value of
FLUX_ENDPOINT_TEST_OFFICIAL_PYTHON. Tests of the plugin need this project in the same environment:
`.venv-plugin`, or the value of FLUX_ENDPOINT_TEST_PLUGIN_PYTHON. Without an interpreter, its tests
are not run, and a line at the end says so.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from not_run import leave_out

#: Path of a source tree of the official packages: released packages have no unit tests.
SOURCE = "GLOBUS_COMPUTE_SOURCE"
OFFICIAL, PLUGIN = ".venv-official", ".venv-plugin"
_VARIABLES = {
    OFFICIAL: "FLUX_ENDPOINT_TEST_OFFICIAL_PYTHON",
    PLUGIN: "FLUX_ENDPOINT_TEST_PLUGIN_PYTHON",
}


def find_python(environment: str) -> str | None:
    """Return the path of an environment's interpreter."""
    if named := os.environ.get(_VARIABLES[environment]):
        return named
    own = Path(__file__).parent.parent / environment
    # The stamp file exists only after a complete installation.
    return str(own / "bin" / "python") if (own / ".installed").exists() else None


def _reason(environment: str) -> str:
    return f"there is no {environment} (make official), and {_VARIABLES[environment]} is not set"


def _missing(item: pytest.Item) -> str | None:
    """Return why a test can't run, e.g. because its environment is missing, or `None`."""
    if not item.get_closest_marker("interop"):
        return None
    needed = PLUGIN if "plugin_python" in getattr(item, "fixturenames", ()) else OFFICIAL
    if find_python(needed):
        return _no_source(item)
    return f"tests with the official packages: {_reason(needed)}"


def _no_source(item: pytest.Item) -> str | None:
    if "official_source" not in getattr(item, "fixturenames", ()) or os.environ.get(SOURCE):
        return None
    return f"the official unit tests: set {SOURCE} to a source tree of globus-compute"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that need the official packages if these are not installed."""
    leave_out(config, items, _missing)


@pytest.fixture(scope="session")
def official_python() -> str:
    """An interpreter with globus-compute-sdk and -endpoint, without this project."""
    return _python(OFFICIAL)


@pytest.fixture(scope="session")
def official_source() -> Path:
    """The source tree of the official SDK, with its unit tests."""
    return Path(os.environ[SOURCE], "compute_sdk").absolute()


@pytest.fixture(scope="session")
def plugin_python() -> str:
    """An interpreter with globus-compute-endpoint and this project; the plugin is not enabled."""
    return _python(PLUGIN)


def _python(environment: str) -> str:
    python = find_python(environment)
    if python is None:
        pytest.skip(f"not run with the official packages: {_reason(environment)}")
    return python
