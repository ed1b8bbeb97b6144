"""The official Globus Compute packages for the tests marked `interop`: a Python that has them.

It is `.venv-official`, which `make test` creates, or what FLUX_ENDPOINT_TEST_OFFICIAL_PYTHON names.
Without one those tests are not run, and one line says so.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "FLUX_ENDPOINT_TEST_OFFICIAL_PYTHON"

_OWN = Path(__file__).parent.parent / ".venv-official"
_NOT_RUN = pytest.StashKey[int]()
_REASON = f"there is no {_OWN.name} (make official), and {VARIABLE} is not set"


def find_official_python() -> str | None:
    """Return the path of the interpreter."""
    if named := os.environ.get(VARIABLE):
        return named
    # The stamp says that the installation went through to its end.
    return str(_OWN / "bin" / "python") if (_OWN / ".installed").exists() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs the official packages where there are none."""
    if find_official_python():
        return
    needing = [item for item in items if item.get_closest_marker("interop")]
    if needing:
        items[:] = [item for item in items if not item.get_closest_marker("interop")]
        config.hook.pytest_deselected(items=needing)
        config.stash[_NOT_RUN] = len(needing)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was left out."""
    if count := config.stash.get(_NOT_RUN, 0):
        text = f"NOT RUN: {count} tests with the official packages: {_REASON}"
        terminalreporter.write_line(text, yellow=True)


@pytest.fixture(scope="session")
def official_python() -> str:
    """A Python with globus-compute-sdk and -endpoint, and without this project."""
    python = find_official_python()
    if python is None:
        pytest.skip(f"not run with the official packages: {_REASON}")
    return python
