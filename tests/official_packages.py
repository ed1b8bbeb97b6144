"""The official Globus Compute packages for the tests marked `interop`: a Python that has them.

It is `.venv-official`, which `make test` creates, or what FLUX_ENDPOINT_TEST_OFFICIAL_PYTHON names;
for the tests of the plugin, which want this project beside them, `.venv-plugin`, or what
FLUX_ENDPOINT_TEST_PLUGIN_PYTHON names. Without one those tests are not run, and one line says so.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

OFFICIAL, PLUGIN = ".venv-official", ".venv-plugin"
_VARIABLES = {
    OFFICIAL: "FLUX_ENDPOINT_TEST_OFFICIAL_PYTHON",
    PLUGIN: "FLUX_ENDPOINT_TEST_PLUGIN_PYTHON",
}
_NOT_RUN = pytest.StashKey[dict[str, int]]()


def find_python(environment: str) -> str | None:
    """Return the path of an environment's interpreter."""
    if named := os.environ.get(_VARIABLES[environment]):
        return named
    own = Path(__file__).parent.parent / environment
    # The stamp says that the installation went through to its end.
    return str(own / "bin" / "python") if (own / ".installed").exists() else None


def _reason(environment: str) -> str:
    return f"there is no {environment} (make official), and {_VARIABLES[environment]} is not set"


def _missing(item: pytest.Item) -> str | None:
    """Return which environment `item` needs that there is not."""
    if not item.get_closest_marker("interop"):
        return None
    needed = PLUGIN if "plugin_python" in getattr(item, "fixturenames", ()) else OFFICIAL
    return None if find_python(needed) else needed


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs the official packages where there are none."""
    missing = {id(item): environment for item in items if (environment := _missing(item))}
    left_out = [item for item in items if id(item) in missing]
    if left_out:
        items[:] = [item for item in items if id(item) not in missing]
        config.hook.pytest_deselected(items=left_out)
        config.stash[_NOT_RUN] = Counter(missing.values())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was left out."""
    for environment, count in config.stash.get(_NOT_RUN, {}).items():
        text = f"NOT RUN: {count} tests with the official packages: {_reason(environment)}"
        terminalreporter.write_line(text, yellow=True)


@pytest.fixture(scope="session")
def official_python() -> str:
    """A Python with globus-compute-sdk and -endpoint, and without this project."""
    return _python(OFFICIAL)


@pytest.fixture(scope="session")
def plugin_python() -> str:
    """A Python with globus-compute-endpoint and this project; the plugin is not enabled there."""
    return _python(PLUGIN)


def _python(environment: str) -> str:
    python = find_python(environment)
    if python is None:
        pytest.skip(f"not run with the official packages: {_reason(environment)}")
    return python
