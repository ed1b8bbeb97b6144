"""A Flux instance of four brokers for the tests marked `flux`: one for the whole session.

In a conftest, so that all share it:

    from flux_instance import flux_module, flux_uri

where the directory `tests` is on `sys.path`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

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


@pytest.fixture(scope="session")
def flux_uri() -> Iterator[str]:
    """The URI of a running instance; tests that want it are skipped where there is no Flux."""
    if shutil.which("flux") is None:
        pytest.skip("not run on Flux: there is no 'flux' on PATH")
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
        pytest.skip("not run on Flux: there is no 'flux' on PATH")
    command = ["flux", "config", "builtin", "python_path"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    for path in answer.split(":"):
        if path not in sys.path:
            sys.path.append(path)
    import flux
    import flux.job
    import flux.resource

    return flux
