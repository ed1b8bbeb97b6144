"""Gpus reach jobs and workers; on Flux they are an instance's that it does not physically have."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_world import World

from flux_endpoint.engine.workers.gpus import VARIABLE, shares
from flux_endpoint.errors import EngineError
from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_instance import FluxInstance
from waiting import until

NODES, CORES, GPUS = 2, 4, 2
_LOCAL = {"local_nodes": NODES, "local_cores_per_node": CORES, "local_gpus_per_node": GPUS}
_FLUX = pytest.param("flux", marks=pytest.mark.flux)
_LOOK = "printenv CUDA_VISIBLE_DEVICES"
_ONE_GPU = {"num_nodes": 1, "ranks_per_node": 1, "gpus_per_rank": 1}

Start = Callable[..., World]


def resources(ranks: str, gpus: str | None = None) -> dict[str, Any]:
    """What `flux R encode` says of some nodes."""
    command = ["flux", "R", "encode", f"-r{ranks}", f"-c0-{CORES - 1}"]
    command += [f"-g{gpus}"] if gpus else []
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    encoded: dict[str, Any] = json.loads(answer.stdout)
    return encoded


def instance(directory: Path, encoded: dict[str, Any]) -> FluxInstance:
    """An instance of two brokers that believes to have these resources."""
    (directory / "R.json").write_text(json.dumps(encoded))
    (directory / "resource.toml").write_text(
        f'[resource]\nnoverify = true\npath = "{directory / "R.json"}"\n'
    )
    return FluxInstance(NODES, f"--config-path={directory}")


@pytest.fixture(scope="module", params=["local", _FLUX])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Starts engines on two nodes, each with four cores and two gpus."""

    def local(**config: Any) -> World:
        return World("local", tmp_path_factory.mktemp("endpoint"), **_LOCAL, **config)

    def flux(**config: Any) -> World:
        return World("flux", tmp_path_factory.mktemp("endpoint"), uri=uri, **config)

    if request.param == "local":
        yield local
        return
    encoded = resources(f"0-{NODES - 1}", f"0-{GPUS - 1}")
    with instance(tmp_path_factory.mktemp("instance"), encoded) as running:
        uri = running.uri
        yield flux


@pytest.fixture(scope="module")
def world(start: Start) -> Iterator[World]:
    """An engine whose workers have a gpu each; there may be as many as there are gpus."""
    world = start(gpus_per_worker=1, min_workers=0)
    yield world
    world.stop()


@pytest.fixture
def crowd(world: World, tmp_path: Path) -> Callable[[], list[tuple[str, str]]]:
    """Has a function on each worker at once; returns node and gpus that each of them saw."""
    rounds = itertools.count()

    def look() -> list[tuple[str, str]]:
        directory = tmp_path / str(next(rounds))
        directory.mkdir()
        count = NODES * GPUS
        ids = [world.submit(hold, str(directory), number) for number in range(count)]
        until(lambda: len(list(directory.glob("started-*"))) == count)
        (directory / "gate").touch()
        return [tuple(end.value) for end in world.ends(ids)]

    return look


def hold(directory, name):
    """Say that this has begun, wait for the gate to open, return node and gpus."""
    import os
    import pathlib
    import time

    (pathlib.Path(directory) / f"started-{name}").touch()
    while not (pathlib.Path(directory) / "gate").exists():
        time.sleep(0.02)
    node = os.environ.get("FLUX_ENDPOINT_LOCAL_NODE") or os.environ["FLUX_URI"]
    return node, os.environ["CUDA_VISIBLE_DEVICES"]


def seen():
    import os

    return os.environ["CUDA_VISIBLE_DEVICES"]


def killed():
    import os

    os.kill(os.getpid(), 9)


def each_gpu_once(places: list[tuple[str, str]]) -> bool:
    nodes = {node for node, _ in places}
    whole = sorted((node, str(gpu)) for node in nodes for gpu in range(GPUS))
    return len(nodes) == NODES and sorted(places) == whole


def test_each_worker_has_a_gpu_of_its_own_and_each_gpu_a_worker(crowd):
    assert each_gpu_once(crowd())


def test_a_killed_workers_gpu_is_the_next_ones(world: World, crowd):
    crowd()
    for _ in range(2):
        ends = world.ends([world.submit(killed) for _ in range(NODES * GPUS)])
        assert {end.code for end in ends} == {"WorkerLost"}
    assert each_gpu_once(crowd())


def test_workers_take_their_gpus_and_a_core_each(world: World, crowd):
    crowd()
    status = world.engine.status()
    assert status["resources"] == {"nodes": NODES, "cores": NODES * CORES, "gpus": NODES * GPUS}
    assert (status["total_workers"], status["max_workers"]) == (4, 4)
    if world.kind == "flux":
        # Where Flux does not answer within a second, it is left out.
        usage = until(lambda: world.engine.status()["usage"])
        assert (usage["gpus_allocated"], usage["gpus_free"]) == (4, 0)
        assert (usage["cores_allocated"], usage["cores_free"]) == (4, 4)


def test_a_job_with_gpus_gets_them_from_idle_workers(world: World, crowd):
    crowd()
    spec = {"num_nodes": NODES, "ranks_per_node": 1, "gpus_per_rank": GPUS}
    result = world.call(ShellFunction(_LOOK), spec=spec).value
    assert (result.returncode, result.stdout) == (0, "0,1\n")


def test_commands_see_their_jobs_gpus(world: World):
    spec = {"num_nodes": 1, "ranks_per_node": 1, "gpus_per_rank": GPUS}
    assert world.call(ShellFunction(_LOOK), spec=spec).value.stdout == "0,1\n"
    assert world.call(ShellFunction(_LOOK), spec={"num_ranks": 1}).value.stdout == "-1\n"


@pytest.mark.mpi
@pytest.mark.parametrize(
    "function",
    [
        MPIFunction(_LOOK),
        MPIFunction(f"sh -c '{_LOOK}' && echo after"),
        ShellFunction(f"$PARSL_MPI_PREFIX {_LOOK}; echo after"),
    ],
    ids=["simple command", "script", "prefix"],
)
def test_every_rank_of_a_command_sees_its_nodes_gpus(world: World, function):
    spec = {"num_nodes": 1, "ranks_per_node": 2, "gpus_per_rank": 1}
    result = world.call(function, spec=spec).value
    lines = result.stdout.splitlines()
    assert (result.returncode, [line for line in lines if line != "after"]) == (0, ["0,1"] * 2)


@pytest.mark.mpi
def test_python_ranks_see_their_nodes_gpus(world: World):
    spec = {"num_nodes": 1, "ranks_per_node": 2, "gpus_per_rank": 1}
    assert world.call(seen, spec=spec).value == ["0,1", "0,1"]


@pytest.mark.parametrize("start", [_FLUX], indirect=True)  # elsewhere mpiexec starts the ranks
def test_fluxs_affinity_gives_each_rank_its_own(world: World):
    spec = {"num_nodes": 1, "ranks_per_node": 2, "gpus_per_rank": 1}
    per_task = "gpu-affinity=per-task"
    options = {"shell_options": {"gpu-affinity": "per-task"}}
    assert world.call(seen, spec={**spec, **options}).value == ["0", "1"]
    script = MPIFunction(f"sh -c '{_LOOK}' && true")
    result = world.call(script, spec={**spec, "launcher_options": f"-o {per_task}"}).value
    assert sorted(result.stdout.split()) == ["0", "1"]


@pytest.mark.mpi
@pytest.mark.parametrize("function", [MPIFunction(_LOOK), MPIFunction(f"{_LOOK};"), None])
def test_ranks_on_several_nodes_see_their_own_nodes_gpus(start: Start, function):
    world = start(min_workers=0)
    first = world.submit(ShellFunction("sleep 1000"), spec=_ONE_GPU)
    try:
        world.event(first, "start")  # so that the nodes have other gpus free
        spec = {"num_nodes": NODES, "ranks_per_node": 1, "gpus_per_rank": 1}
        value = world.call(function or seen, spec=spec).value
        assert sorted(value.stdout.split() if function else value) == ["0", "1"]
    finally:
        world.engine.cancel(first)
        world.end(first)
        world.stop()


def test_more_gpus_than_there_are_is_refused_with_their_number(world: World):
    for spec in ({"num_nodes": 1, "ranks_per_node": 1, "gpus_per_rank": 3}, {"num_nodes": 3}):
        end = world.call(ShellFunction("true"), spec={"gpus_per_rank": 1, **spec})
        assert end.code == "EngineRefusedTask"
        assert "there are 2 nodes with 8 cores and 4 gpus" in end.text


def test_a_worker_may_have_several_gpus(start: Start):
    world = start(gpus_per_worker=2, max_workers=1)
    try:
        assert world.call(seen).value == "0,1"
    finally:
        world.stop()


def test_a_worker_may_have_several_cores(start: Start):
    world = start(gpus_per_worker=1, cores_per_worker=4, max_workers=4, min_workers=4)
    try:
        # A node has cores for one, although it has gpus for two.
        until(lambda: world.engine.counters()["idle_workers"] == NODES)
        assert world.call(seen).value == "0"
        assert world.engine.counters()["total_workers"] == NODES
    finally:
        world.stop()


def test_workers_without_gpus_leave_them_to_jobs(start: Start):
    world = start(max_workers=1)
    try:
        assert world.call(seen).value == "-1"
    finally:
        world.stop()


def test_resources_that_the_nodes_lack_stop_the_engine_with_the_numbers(start: Start):
    with pytest.raises(EngineError, match="gpus_per_worker: 3, but the nodes have 2 gpus each"):
        start(gpus_per_worker=3)
    with pytest.raises(EngineError, match="cores_per_worker: 5, but the nodes have 4 cores each"):
        start(cores_per_worker=5)
    with pytest.raises(
        EngineError,
        match=r"workers_per_node: 3 workers with 2 cores each .* need 6, but .* have 4 cores",
    ):
        start(cores_per_worker=2, workers_per_node=3)
    with pytest.raises(
        EngineError,
        match=r"workers_per_node: 2 workers with 2 gpus each .* need 4, but the nodes have 2 gpus",
    ):
        start(gpus_per_worker=2, workers_per_node=2)


def test_nodes_without_gpus_are_named(tmp_path: Path):
    with pytest.raises(EngineError, match="gpus_per_worker: 1, but the nodes have no gpus each"):
        World("local", tmp_path, gpus_per_worker=1)


@pytest.mark.flux
def test_nodes_that_differ_in_their_gpus_stop_the_engine_with_the_numbers(tmp_path: Path):
    encoded, without = resources("0", "0-1"), resources("1")
    encoded["execution"]["R_lite"] += without["execution"]["R_lite"]
    encoded["execution"]["nodelist"] += without["execution"]["nodelist"]
    with (
        instance(tmp_path, encoded) as running,
        pytest.raises(EngineError, match=r"\(nodes: 1 with 2, 1 with 0\)"),
    ):
        World("flux", tmp_path, uri=running.uri, gpus_per_worker=1)


def test_a_manager_that_does_not_see_its_gpus_reports_it():
    assert shares({VARIABLE: "4,7"}, 2, 1) == [{VARIABLE: "4"}, {VARIABLE: "7"}]
    assert shares({VARIABLE: "-1"}, 2, 0) == [{}, {}]
    for environment in ({}, {VARIABLE: "-1"}, {VARIABLE: "0"}):
        with pytest.raises(EngineError, match=r"2 workers with 1 gpu each need 2.*gpu-affinity"):
            shares(environment, 2, 1)
