"""A Flux instance with four brokers for the tests marked `flux`, one for the whole session.

Without Flux, these tests are not run, and a line at the end says so.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from not_run import leave_out

BROKERS = 4
#: Ends when its standard input is closed, even if the test run is killed.
_INITIAL_PROGRAM = 'echo "$FLUX_URI"; cat > /dev/null'


def _start(size: int = BROKERS, *options: str) -> subprocess.Popen[str]:
    # It must be independent of an instance or job in which the tests may run.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
    return subprocess.Popen(
        ["flux", "start", f"--test-size={size}", *options, "sh", "-c", _INITIAL_PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )


class FluxInstance:
    """An instance for a single test, which may kill it.

    Args:
        size: number of brokers.
        options: further options of `flux start`.
    """

    def __init__(self, size: int, *options: str) -> None:
        self._process = _start(size, "--test-exit-timeout=1s", *options)
        assert self._process.stdout is not None
        self.uri = self._process.stdout.readline().strip()
        assert self.uri, f"`flux start` ended with status {self._process.wait()}"

    def __enter__(self) -> FluxInstance:
        return self

    def kill(self) -> None:
        """Kill the broker of rank 0 with SIGKILL, as in a power failure."""
        command = ["flux", "proxy", self.uri, "flux", "getattr", "broker.pid"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        os.kill(int(answer.stdout), signal.SIGKILL)

    @contextmanager
    def held_cleanup(self) -> Iterator[None]:
        """Hold up the instance's cleanup until the end of the `with` block."""
        with tempfile.TemporaryDirectory() as directory:
            fifo = Path(directory) / "go"
            os.mkfifo(fifo)
            body = json.dumps({"name": "cleanup", "commands": [f"read line < {fifo}"]})
            push = (
                "import flux, json, sys; "
                "flux.Flux(sys.argv[1]).rpc('runat.push', json.loads(sys.argv[2])).get()"
            )
            subprocess.run(["flux", "python", "-c", push, self.uri, body], check=True)
            try:
                yield
            finally:
                self.end()  # starts the cleanup if the test has failed before it could
                fifo.write_text("\n")

    def end(self) -> None:
        """End the instance as an allocation ends: after its cleanup."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def __exit__(self, *_: object) -> None:
        self.end()
        try:
            self._process.wait(timeout=60)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()


_REASON = "there is no 'flux' on PATH"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that need Flux if it is not installed."""
    if shutil.which("flux") is None:
        reason = f"tests on Flux: {_REASON}"
        leave_out(config, items, lambda item: reason if item.get_closest_marker("flux") else None)


@pytest.fixture(scope="session")
def flux_uri() -> Iterator[str]:
    """The URI of a running instance; without Flux, tests that need it are skipped."""
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
    """The module `flux`, the Python bindings of the Flux on `PATH`."""
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
