"""A Flux instance of four brokers for the tests marked `flux`: one for the whole session.

Without Flux those tests are not run, and one line says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

BROKERS = 4
#: Ends with its standard input: also when the test run is killed.
_INITIAL_PROGRAM = 'echo "$FLUX_URI"; cat > /dev/null'


def _start() -> subprocess.Popen[str]:
    # Not as a part of an instance, or of a job, that the tests may run in.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
    return subprocess.Popen(
        ["flux", "start", f"--test-size={BROKERS}", "sh", "-c", _INITIAL_PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )


_NOT_RUN = pytest.StashKey[int]()
_OUTPUT = "tests left out for want of Flux"
_REASON = "there is no 'flux' on PATH"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs Flux where there is none."""
    if shutil.which("flux") is not None:
        return
    needing = [item for item in items if item.get_closest_marker("flux")]
    if needing:
        items[:] = [item for item in items if not item.get_closest_marker("flux")]
        config.hook.pytest_deselected(items=needing)
        config.stash[_NOT_RUN] = len(needing)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that speaks to the person, where several run the tests."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output[_OUTPUT] = session.config.stash.get(_NOT_RUN, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear of it; every process has left out the same tests."""
    if count := getattr(node, "workeroutput", {}).get(_OUTPUT, 0):
        node.config.stash[_NOT_RUN] = count


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was left out."""
    if count := config.stash.get(_NOT_RUN, 0):
        terminalreporter.write_line(f"NOT RUN: {count} tests on Flux: {_REASON}", yellow=True)


@pytest.fixture(scope="session")
def flux_uri() -> Iterator[str]:
    """The URI of a running instance; tests that want it are skipped where there is no Flux."""
    if shutil.which("flux") is None:
        pytest.skip(f"not run on Flux: {_REASON}")
    with _start() as instance:
        assert instance.stdin is not None
        assert instance.stdout is not None
        uri = instance.stdout.readline().strip()
        if not uri:
            pytest.fail(f"`flux start` ended with status {instance.wait()}")
        yield uri
        instance.stdin.close()
        instance.wait(timeout=60)


@pytest.fixture(scope="session")
def flux_module() -> ModuleType:
    """Flux's own Python bindings, the module `flux`, from the Flux on `PATH`."""
    if shutil.which("flux") is None:
        pytest.skip(f"not run on Flux: {_REASON}")
    command = ["flux", "config", "builtin", "python_path"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    for path in answer.split(":"):
        if path not in sys.path:
            sys.path.append(path)
    import flux
    import flux.job
    import flux.resource

    return flux
