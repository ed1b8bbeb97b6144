"""A Flux instance of four brokers for the tests marked `flux`: one for the whole session.

Without Flux those tests are not run, and one line says so.
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
#: Ends with its standard input: also when the test run is killed.
_INITIAL_PROGRAM = 'echo "$FLUX_URI"; cat > /dev/null'


def _start(size: int = BROKERS, *options: str) -> subprocess.Popen[str]:
    # Not as a part of an instance, or of a job, that the tests may run in.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
    return subprocess.Popen(
        ["flux", "start", f"--test-size={size}", *options, "sh", "-c", _INITIAL_PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )


class FluxInstance:
    """An instance of a test's own, which may be killed.

    Args:
        size: how many brokers.
        options: more options of `flux start`.
    """

    def __init__(self, size: int, *options: str) -> None:
        self._process = _start(size, "--test-exit-timeout=1s", *options)
        assert self._process.stdout is not None
        self.uri = self._process.stdout.readline().strip()
        assert self.uri, f"`flux start` ended with status {self._process.wait()}"

    def __enter__(self) -> FluxInstance:
        return self

    def kill(self) -> None:
        """Kill the broker of rank 0, as nothing but SIGKILL or a power cut can end it."""
        command = ["flux", "proxy", self.uri, "flux", "getattr", "broker.pid"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        os.kill(int(answer.stdout), signal.SIGKILL)

    @contextmanager
    def held_cleanup(self) -> Iterator[None]:
        """Meanwhile its cleanup, once it has begun, does not go on."""
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
                self.end()  # else there is no cleanup to go on, where the test has failed before
                fifo.write_text("\n")

    def end(self) -> None:
        """Let it end as an allocation does: its cleanup, then its end."""
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
    """Leave out what needs Flux where there is none."""
    if shutil.which("flux") is None:
        reason = f"tests on Flux: {_REASON}"
        leave_out(config, items, lambda item: reason if item.get_closest_marker("flux") else None)


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
