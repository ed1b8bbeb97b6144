"""A node that goes down under a job: on an instance of its own, which loses a broker."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_world import World, until

from flux_endpoint.functions import MPIFunction
from foreground import Process

pytestmark = pytest.mark.flux


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Flux instance of two brokers, which `FLUX_URI` names."""
    if shutil.which("flux") is None:
        pytest.skip("not run on Flux: there is no 'flux' on PATH")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
    with Process(
        ["flux", "start", "--test-size=2", "sh", "-c", 'echo "$FLUX_URI"; cat > /dev/null'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        monkeypatch.setenv("FLUX_URI", process.stdout.readline().strip())
        yield
        process.stdin.close()
        process.wait(timeout=60)


def lose_a_node() -> None:
    command = ["flux", "exec", "-r", "1", "flux", "getattr", "broker.pid"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    os.kill(int(answer), signal.SIGKILL)


@pytest.mark.usefixtures("instance")
def test_a_lost_node_is_no_fault_of_the_task(tmp_path: Path) -> None:
    world = World("flux", tmp_path, max_nodes=1)
    try:
        spec = {"num_nodes": 2, "ranks_per_node": 1}
        task = world.submit(MPIFunction("sleep 300"), spec=spec)
        until(lambda: any(event.name == "start" for event in world.events))
        lose_a_node()
        end = world.end(task)
        assert end.code == "WorkerLost"
        assert "node failure" in end.text
    finally:
        world.stop()
