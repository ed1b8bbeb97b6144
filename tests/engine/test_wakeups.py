"""The pool sleeps when there is nothing to do, and nothing that comes in between is missed."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_world import World

from flux_endpoint.engine.demand import Amount, JobDemand
from flux_endpoint.engine.workers import manager_registry, pool
from flux_endpoint.engine.workers.backlog import TaskBacklog
from flux_endpoint.engine.workers.lifecycle import PoolStop
from flux_endpoint.engine.workers.manager_registry import ManagerRegistry
from flux_endpoint.engine.workers.sizing import Limits
from flux_endpoint.engine.workers.yielding import InstanceNodes
from flux_endpoint.functions import ShellFunction
from waiting import until

pytestmark = pytest.mark.usefixtures("whole")

#: Seconds that the pool's thread is kept from running: more than a job waits for its room.
PREEMPTED = 0.5


def hold(directory: str, name: str) -> str:
    """Say that this has begun, and wait until it may end."""
    import pathlib
    import time

    place = pathlib.Path(directory)
    (place / f"{name}-started").touch()
    while not (place / f"{name}-may-end").exists():
        time.sleep(0.02)
    return name


def let_end(directory: Path, name: str) -> None:
    (directory / f"{name}-may-end").touch()


def status(world: World, name: str) -> Any:
    return world.engine.status()[name]


@pytest.fixture
def preempted(monkeypatch):
    """The pool's thread is kept from running between its decisions and its sleep."""
    decide_how_long = pool.WorkerPool._poll_timeout

    def timeout(self: pool.WorkerPool) -> int | None:
        time.sleep(PREEMPTED)
        return decide_how_long(self)

    monkeypatch.setattr(manager_registry, "_MIN_STAY", 0.3)
    return lambda: monkeypatch.setattr(pool.WorkerPool, "_poll_timeout", timeout)


def test_a_job_gets_room_if_a_timer_expires_before_the_pool_sleeps(make_world, preempted):
    world = make_world(min_nodes=1, max_nodes=1)
    until(lambda: status(world, "managers") == 1)
    time.sleep(2 * manager_registry._MIN_STAY)  # nothing of the workers' own wakes the pool
    preempted()
    nodes = status(world, "resources")["nodes"]
    spec = {"num_nodes": nodes, "exclusive": True}
    job = world.submit(ShellFunction("echo ran"), spec=spec)
    assert world.end(job).value.stdout == "ran\n"


def test_workers_that_are_no_longer_drained_take_waiting_tasks(make_world, tmp_path):
    world = make_world(min_nodes=1, max_nodes=1)
    workers = status(world, "max_workers")
    until(lambda: status(world, "idle_workers") == workers)
    names = [f"task{number}" for number in range(workers)]
    ids = [world.submit(hold, str(tmp_path), name) for name in names]
    until(lambda: len(list(tmp_path.glob("*-started"))) == workers)
    spec = {"num_nodes": status(world, "resources")["nodes"], "exclusive": True}
    job = world.submit(ShellFunction("true"), spec=spec)
    until(lambda: status(world, "draining_managers") == 1)
    let_end(tmp_path, names[0])
    assert world.end(ids[0]).value == names[0]
    waits = world.submit(hold, str(tmp_path), "waits")
    until(lambda: status(world, "pending_tasks") == 1)
    time.sleep(0.2)  # no workers are about to be started for it
    let_end(tmp_path, "waits")
    world.engine.cancel(job)
    assert world.end(waits).value == "waits"
    for name in names:
        let_end(tmp_path, name)
    world.ends(ids)


def test_workers_that_are_no_longer_drained_take_tasks_that_wait_on_other_nodes(
    make_world, tmp_path, monkeypatch
):
    monkeypatch.setattr(manager_registry, "_MIN_STAY", 0.1)
    world = make_world(min_nodes=2, max_nodes=2, workers_per_node=2)
    until(lambda: status(world, "managers") == 2)
    names = [f"task{number}" for number in range(4)]
    ids = [world.submit(hold, str(tmp_path), name) for name in names]
    until(lambda: len(list(tmp_path.glob("*-started"))) == 4)
    let_end(tmp_path, names[0])  # so it costs less to clear its node than the other
    world.end(ids[0])
    spec = {"num_nodes": status(world, "resources")["nodes"] - 1, "exclusive": True}
    job = world.submit(ShellFunction("true"), spec=spec)
    until(lambda: status(world, "draining_managers") == 1)
    waits = world.submit(hold, str(tmp_path), "waits")
    until(lambda: status(world, "outstanding_tasks") == 4)
    # Nothing of what runs wakes the pool any more.
    until(lambda: len(status(world, "running_tasks")) == 3)
    world.engine.cancel(job)
    let_end(tmp_path, "waits")
    assert world.end(waits).value == "waits"
    for name in names:
        let_end(tmp_path, name)
    world.ends(ids)


def test_the_pool_sleeps_until_the_workers_of_an_earlier_agent_have_reported():
    registry = ManagerRegistry(Limits(0, 4, 4), InstanceNodes(1, Amount(4)), 60.0)
    registry.demand(JobDemand())  # a review is due, which comes after the reports
    nothing = SimpleNamespace(moments=lambda _now: (), stopping=PoolStop())
    handover = SimpleNamespace(due=math.inf, is_pending=True)
    sleeping = object.__new__(pool.WorkerPool)
    vars(sleeping).update(
        _now=time.monotonic(),
        _registry=registry,
        _lifecycle=nothing,
        _distributor=nothing,
        _handover=handover,
        _inbox=SimpleNamespace(settle_at=math.inf),
        _waiting=TaskBacklog(0, lambda *_: None),
    )
    assert sleeping._poll_timeout() is None
    handover.is_pending = False
    assert sleeping._poll_timeout() is not None
