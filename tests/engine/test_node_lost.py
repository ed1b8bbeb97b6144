"""A node that goes down under a job: on an instance of its own, which loses a broker."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engine_world import World, manager_processes, marked

from flux_endpoint.functions import MPIFunction
from foreground import Process
from waiting import until

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
def test_a_lost_node_does_not_fail_the_task(tmp_path: Path) -> None:
    world = World("flux", tmp_path, max_nodes=1)
    try:
        spec = {"num_nodes": 2, "ranks_per_node": 1}
        task = world.submit(MPIFunction("sleep 300"), spec=spec)
        until(lambda: any(event.name == "start" for event in world.events))
        lose_a_node()
        end = world.end(task)
        assert end.code == "WorkerLost"
        # Flux tells of the node or of the job shell on it, whichever it notices first.
        assert re.search("node failure on|shell rank 1 on host", end.text)
    finally:
        world.stop()


def once(directory: str, name: str, seconds: float) -> str:
    """Say that it begins, if no process that has begun it before lives, and that it completes."""
    import os
    import time
    from pathlib import Path

    begun = Path(directory, f"begun-{name}")
    for pid in begun.read_text().split() if begun.exists() else ():
        stat = Path("/proc", pid, "stat")
        # One that is dead stays a zombie until pid 1 looks.
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            Path(directory, f"twice-{name}").touch()
    with begun.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    with Path(directory, "completed").open("a") as file:
        file.write(f"{name}\n")
    return name


@pytest.mark.usefixtures("instance")
@pytest.mark.parametrize("retries", [0, 1])
def test_workers_of_a_lost_node_end_and_waiting_tasks_run_elsewhere(
    tmp_path: Path, mark: str, retries: int
) -> None:
    world = World(
        "flux",
        tmp_path,
        min_nodes=2,
        max_nodes=2,
        workers_per_node=1,
        max_retries_on_system_failure=retries,
    )
    try:
        until(lambda: world.engine.counters()["total_workers"] == 2)
        long = [world.submit(once, str(tmp_path), f"long{n}", 6) for n in range(2)]
        until(lambda: len(list(tmp_path.glob("begun-long*"))) == 2)
        short = [world.submit(once, str(tmp_path), f"short{n}", 0) for n in range(20)]
        until(lambda: world.engine.counters()["pending_tasks"] < 20)
        workers = {int(path.read_text()) for path in tmp_path.glob("begun-long*")}
        managers = {process.pid for process in manager_processes(mark)}
        lose_a_node()
        until(lambda: sum(psutil.pid_exists(pid) for pid in workers) == 1)  # it ends at once
        # Another one may come to the node that is left before the lost one has ended.
        until(lambda: len({process.pid for process in manager_processes(mark)} & managers) == 1)
        ends = world.ends(long)
        assert sorted(end.code for end in ends if end.code) == ["WorkerLost"] * (1 - retries)
        assert [end.value for end in world.ends(short)] == [f"short{n}" for n in range(20)]
        assert list(tmp_path.glob("twice-*")) == []
        completed = (tmp_path / "completed").read_text().split()
        assert len(completed) == len(set(completed)) == 21 + retries
        assert world.repeated == 0
    finally:
        world.stop()
    until(lambda: not marked(mark))
