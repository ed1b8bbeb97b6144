"""Workers grow with what waits and are given back; jobs and functions share an allocation."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_world import World, manager_processes

from flux_endpoint.engine.workers import manager_registry, sizing
from flux_endpoint.functions import MPIFunction, ShellFunction
from waiting import until

#: Seconds after which something that should happen counts as not happening: much is started here.
PATIENCE = 60.0
#: Far more than any instance of the tests has.
ALL = 1000


def hold(directory, name):
    """Say that this has begun, and wait for the gate to open."""
    import pathlib
    import time

    (pathlib.Path(directory) / f"started-{name}").touch()
    while not (pathlib.Path(directory) / "gate").exists():
        time.sleep(0.02)
    return name


def nap(number):
    import time

    time.sleep(0.05)
    return number


def started(directory: Path) -> int:
    return len(list(directory.glob("started-*")))


def status(world: World, *names: str) -> Any:
    now = world.engine.counters()
    if not now.keys() >= {*names}:  # the others have to be asked for
        now = world.engine.status()
    values = tuple(now[name] for name in names)
    return values[0] if len(values) == 1 else values


def nodes_and_cores(world: World) -> tuple[int, int]:
    resources = status(world, "resources")
    return resources["nodes"], resources["cores"] // resources["nodes"]


def hold_many(world: World, directory: Path, count: int) -> list[str]:
    return [world.submit(hold, str(directory), number) for number in range(count)]


@contextmanager
def stream(world: World, outstanding: int, *call: Any, **options: Any) -> Iterator[deque[Any]]:
    """Have so many tasks of a kind waiting or running, always; yields what they returned."""
    results: deque[Any] = deque()
    wanted = True

    def feed() -> None:
        tasks: deque[str] = deque()
        while wanted or tasks:
            while wanted and len(tasks) < outstanding:
                tasks.append(world.submit(*call, **options))
            results.append(world.end(tasks.popleft(), PATIENCE).value)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield results
    finally:
        wanted = False
        thread.join()


# Growing and giving back


def test_the_number_of_workers_fits_the_waiting_tasks(make_world, tmp_path):
    world = make_world(min_workers=0, max_workers=ALL)
    ids = hold_many(world, tmp_path, 3)
    until(lambda: started(tmp_path) == 3)
    until(lambda: status(world, "total_workers", "starting_workers") == (3, 0))
    (tmp_path / "gate").touch()
    world.ends(ids)


def test_workers_never_exceed_max_workers(make_world, tmp_path):
    world = make_world(min_workers=0, max_workers=3)
    ids = hold_many(world, tmp_path, 12)
    until(lambda: started(tmp_path) == 3)
    until(lambda: status(world, "total_workers", "starting_workers") == (3, 0))
    assert status(world, "max_workers") == 3
    (tmp_path / "gate").touch()
    assert [end.value for end in world.ends(ids)] == list(range(12))


def test_idle_workers_are_given_back_down_to_min_workers(make_world, tmp_path, mark):
    world = make_world(min_workers=1, max_workers=5, idle_timeout=0.3)
    until(lambda: status(world, "total_workers") == 1)
    ids = hold_many(world, tmp_path, 5)
    until(lambda: started(tmp_path) == 5)
    until(lambda: status(world, "total_workers", "idle_workers") == (5, 0))
    (tmp_path / "gate").touch()
    world.ends(ids)
    until(lambda: status(world, "total_workers", "idle_workers") == (1, 1))
    until(lambda: len(manager_processes(mark)) == 1)


def test_workers_take_the_cores_that_jobs_leave_of_each_node(make_world, tmp_path, monkeypatch):
    for module in (manager_registry, sizing):
        monkeypatch.setattr(module, "STALLED_AFTER", 0.3)
    world = make_world(min_workers=0, max_workers=ALL)
    nodes, cores = nodes_and_cores(world)
    gate = tmp_path / "gate"
    command = ShellFunction(f"while [ ! -e {gate} ]; do sleep 0.05; done")
    job = world.submit(command, spec={"num_nodes": nodes, "ranks_per_node": 1})
    world.event(job, "start")
    ids = hold_many(world, tmp_path, nodes * (cores - 1))
    until(lambda: started(tmp_path) == nodes * (cores - 1))
    gate.touch()
    assert world.end(job).value.returncode == 0
    world.ends(ids)


# Sharing an allocation with jobs


def test_a_job_of_the_whole_instance_runs_during_an_endless_stream_of_functions(
    make_world, monkeypatch
):
    monkeypatch.setattr(manager_registry, "_MIN_STAY", 0.3)
    world = make_world(max_workers=ALL)
    nodes, cores = nodes_and_cores(world)
    with stream(world, 3 * nodes * cores, nap, 1) as results:
        until(lambda: status(world, "total_workers") == nodes * cores)
        for urgency in (16, 3):
            spec = {"num_nodes": nodes, "exclusive": True, "urgency": urgency}
            # On Flux, each rank is a task of the job.
            command = MPIFunction("true") if world.kind == "flux" else ShellFunction("true")
            assert world.end(world.submit(command, spec=spec), PATIENCE).value.returncode == 0
            before = len(results)
            until(lambda: len(results) > before + 3 * nodes * cores)  # noqa: B023 - now
    assert set(results) == {1}


def test_functions_run_during_an_endless_stream_of_jobs(make_world, monkeypatch):
    world = make_world(min_workers=0, max_workers=ALL)
    nodes, cores = nodes_and_cores(world)
    monkeypatch.setattr(manager_registry, "_MIN_STAY", 0.3)
    spec = {"num_nodes": 1, "cores_per_rank": cores}
    with stream(world, 2 * nodes, ShellFunction("sleep 0.1"), spec=spec) as results:
        until(lambda: len(results) > 2)
        ids = [world.submit(nap, number) for number in range(5)]
        assert [end.value for end in world.ends(ids, PATIENCE)] == list(range(5))
        before = len(results)
        until(lambda: len(results) > before + 2 * nodes)
    assert {result.returncode for result in results} == {0}


@pytest.mark.usefixtures("whole")
def test_only_as_many_workers_are_drained_as_a_job_needs_and_their_tasks_run_elsewhere(
    make_world, tmp_path, monkeypatch
):
    monkeypatch.setattr(manager_registry, "_MIN_STAY", 0.1)
    world = make_world(min_nodes=4, max_nodes=4)
    _, cores = nodes_and_cores(world)
    ids = hold_many(world, tmp_path, 12 * cores)
    until(lambda: started(tmp_path) == 4 * cores)
    job = world.submit(ShellFunction("echo ran"), spec={"num_nodes": 1, "exclusive": True})
    until(lambda: status(world, "draining_managers") == 1)
    (tmp_path / "gate").touch()
    assert world.end(job).value.stdout == "ran\n"
    assert [end.value for end in world.ends(ids)] == list(range(12 * cores))
    until(lambda: status(world, "total_workers") == 4 * cores)


@pytest.mark.usefixtures("whole")
def test_drained_workers_continue_when_the_job_is_gone(make_world, tmp_path, monkeypatch):
    monkeypatch.setattr(manager_registry, "_MIN_STAY", 0.1)
    world = make_world(min_nodes=2, max_nodes=2)
    nodes, cores = nodes_and_cores(world)
    ids = hold_many(world, tmp_path, 2 * cores)
    until(lambda: started(tmp_path) == 2 * cores)
    job = world.submit(ShellFunction("true"), spec={"num_nodes": nodes, "exclusive": True})
    until(lambda: status(world, "draining_managers") == 2)
    world.engine.cancel(job)
    assert world.end(job).code == "TaskCancelled"
    until(lambda: status(world, "draining_managers") == 0)
    (tmp_path / "gate").touch()
    world.ends(ids)
    assert world.call(nap, 3).value == 3


@pytest.mark.usefixtures("whole")
def test_a_job_that_may_run_on_one_node_only_gets_that_one(make_world, monkeypatch):
    monkeypatch.setattr(manager_registry, "_MORE_NODES_AFTER", 0.1)
    monkeypatch.setattr(manager_registry, "_MIN_STAY", 0.3)
    world = make_world(min_nodes=4, max_nodes=4)
    until(lambda: status(world, "managers") == 4)
    spec = {"num_nodes": 1, "exclusive": True, "constraints": {"ranks": ["3"]}}
    job = world.submit(ShellFunction("echo ran"), spec=spec)
    assert world.end(job).value.stdout == "ran\n"
    until(lambda: status(world, "managers") == 4)
