"""Workers and the jobs that others submit to the same Flux instance, past the endpoint."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest
from engine_world import PATIENCE, World, manager_processes

from flux_endpoint.engine.workers import manager_registry
from waiting import until

pytestmark = [pytest.mark.flux, pytest.mark.usefixtures("whole")]


@pytest.fixture(scope="module")
def kind(flux_uri):
    """On Flux only: nobody else submits to the embedded executor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUX_URI", flux_uri)
        yield "flux"


def flux(*words: str) -> str:
    """Run one of Flux's commands to its end, and return what it prints."""
    command = ["flux", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout.strip()


def hold(directory, name):
    """Say that this has begun, and wait for the gate to open."""
    import pathlib
    import time

    (pathlib.Path(directory) / f"started-{name}").touch()
    while not (pathlib.Path(directory) / "gate").exists():
        time.sleep(0.02)
    return name


def pid(_number):
    import os

    return os.getpid()


def wait_for_managers(world: World, count: int) -> None:
    until(lambda: world.engine.counters()["managers"] == count)


def identities(mark: str) -> set[int]:
    return {process.pid for process in manager_processes(mark)}


@pytest.mark.parametrize(
    "wanted",
    [["-N4"], ["-N4", "--exclusive"], ["-n8"], ["-N4", "-c2", "--urgency=1"]],
    ids=" ".join,
)
def test_idle_workers_are_drained_for_a_job_and_return_afterwards(make_world, wanted):
    world = make_world(min_nodes=4, max_nodes=4)
    wait_for_managers(world, 4)
    assert "ran" in flux("run", *wanted, "echo", "ran")
    wait_for_managers(world, 4)


def test_only_idle_workers_whose_cores_are_needed_are_drained(make_world, mark):
    world = make_world(min_nodes=4, max_nodes=4)
    wait_for_managers(world, 4)
    before = identities(mark)
    assert flux("run", "-N2", "-c2", "echo", "ran") == "ran\nran"
    wait_for_managers(world, 4)
    assert len(before & identities(mark)) == 2


def test_many_small_jobs_run_beside_workers_on_every_core(make_world):
    world = make_world(min_nodes=4, max_nodes=4)
    wait_for_managers(world, 4)
    flux("submit", "--cc=1-40", "--quiet", "--wait", "-n1", "true")
    # While the last of them run, workers come back in pieces of what is free.
    until(lambda: world.engine.counters()["total_workers"] == 8)
    assert isinstance(world.call(pid, 1).value, int)


@pytest.mark.parametrize(
    "never",
    [["-N4", "--urgency=0"], ["-N4", "--begin-time=+1h"], ["-N4", "--dependency=afterok:1"]],
    ids=["held", "later", "dependent"],
)
def test_no_worker_is_drained_for_a_job_that_could_not_run(make_world, mark, never):
    blocker = flux("submit", "--urgency=0", "-n1", "true")
    if "--dependency=afterok:1" in never:
        never = ["-N4", f"--dependency=afterok:{blocker}"]
    world = make_world(min_nodes=3, max_nodes=3)
    wait_for_managers(world, 3)
    before = identities(mark)
    job = flux("submit", *never, "true")
    # Flux tells of its jobs in order: when workers leave for this one, the other is known.
    flux("run", "-N2", "-c2", "true")
    wait_for_managers(world, 3)
    flux("cancel", job, blocker)
    assert len(before & identities(mark)) == 2


def test_no_worker_is_drained_for_a_job_that_can_never_run(make_world, mark):
    world = make_world(min_nodes=4, max_nodes=4)
    wait_for_managers(world, 4)
    before = identities(mark)
    job = flux("submit", "-n100", "true")
    flux("job", "wait-event", job, "clean")
    flux("run", "-N1", "-c2", "true")
    wait_for_managers(world, 4)
    assert len(before & identities(mark)) == 3


def test_no_worker_is_drained_for_a_job_that_needs_a_drained_node(make_world, mark):
    flux("resource", "drain", "3", "a test")
    try:
        world = make_world(min_nodes=3, max_nodes=3)
        wait_for_managers(world, 3)
        before = identities(mark)
        job = flux("submit", "-N4", "true")
        ids = [world.submit(pid, number) for number in range(20)]
        world.ends(ids)
        assert identities(mark) == before
    finally:
        flux("resource", "undrain", "3")
    flux("job", "wait-event", job, "clean")
    wait_for_managers(world, 3)


def test_busy_workers_finish_their_tasks_before_they_end(make_world, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(manager_registry, "_MIN_STAY", 0.1)
    world = make_world(min_nodes=4, max_nodes=4)
    wait_for_managers(world, 4)
    ids = [world.submit(hold, str(tmp_path), number) for number in range(8)]
    until(lambda: len(list(tmp_path.glob("started-*"))) == 8)
    job = flux("submit", "-N4", "--exclusive", "true")
    until(lambda: world.engine.counters()["draining_managers"] == 4)
    assert not any(world.has_ended(task) for task in ids)
    (tmp_path / "gate").touch()
    assert [end.value for end in world.ends(ids)] == list(range(8))
    flux("job", "wait-event", job, "clean")
    wait_for_managers(world, 4)


def test_functions_run_while_other_jobs_hold_the_rest(make_world, tmp_path: Path):
    gate = tmp_path / "gate"
    wait = f"while [ ! -e {gate} ]; do sleep 0.05; done"
    job = flux("submit", "-N3", "--exclusive", "sh", "-c", wait)
    flux("job", "wait-event", job, "start")
    world = make_world(min_nodes=4, max_nodes=4)
    wait_for_managers(world, 1)
    assert len({end.value for end in world.ends([world.submit(pid, n) for n in range(8)])}) <= 2
    assert world.engine.counters()["starting_workers"] in {0, 6}
    gate.touch()
    wait_for_managers(world, 4)


def test_two_endpoints_do_not_take_the_idle_workers_from_each_other(
    make_world, tmp_path: Path, mark
):
    one = make_world(tmp_path / "one", min_nodes=4, max_nodes=4)
    wait_for_managers(one, 4)
    two = make_world(tmp_path / "two", endpoint_id=str(uuid4()), min_nodes=1, max_nodes=4)
    assert isinstance(two.call(pid, 1).value, int)  # for which workers of the first have left
    assert isinstance(one.call(pid, 1).value, int)
    before = identities(mark)
    assert isinstance(two.call(pid, 1).value, int)
    assert isinstance(one.call(pid, 1).value, int)
    assert identities(mark) == before


def test_the_instance_of_the_tests_has_four_nodes_of_two_cores():
    assert os.environ["FLUX_URI"]
    assert flux("resource", "list", "-no", "{nnodes} {ncores}", "-s", "all") == "4 8"
