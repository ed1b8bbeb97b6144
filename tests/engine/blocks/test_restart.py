"""An engine that was killed leaves its blocks, and the next finds them again."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from engine_world import buffer_of, marked
from killing import Endpoint

from flux_endpoint.functions import ShellFunction
from flux_endpoint.protocol.jobid import parse_jobid
from waiting import until

pytestmark = pytest.mark.flux

PROGRAM = Path(__file__).with_name("engine_program.py")
ONE = {"num_nodes": 1}


@pytest.fixture
def killed(tmp_path, uri, mark):
    """Have an engine run a command, and kill it when it knows that; give the task's id."""

    def run(command, begun):
        task = str(uuid.uuid4())
        arguments = [str(tmp_path), task, command, json.dumps(ONE)]
        process = subprocess.Popen([sys.executable, str(PROGRAM), *arguments])
        try:
            until(begun.exists)
            until(lambda: list(tmp_path.glob(f"engine/blocks/*/engine/jobs/{task}/job.json")))
        finally:
            process.kill()
            process.wait()
        return task

    return run


def recorded(directory):
    records = (directory / "engine" / "blocks").glob("*/block.json")
    return [json.loads(record.read_text())["jobid"] for record in records]


def test_a_running_block_is_found_again_and_its_task_continues(killed, make_blocks, tmp_path):
    count, gate = tmp_path / "count", tmp_path / "gate"
    command = f"echo run >> {count}; while [ ! -e {gate} ]; do sleep 0.05; done; echo finished"
    task = killed(command, count)
    [before] = recorded(tmp_path)
    world = make_blocks(engine={"recovers": {task: (buffer_of(ShellFunction(command)), ONE)}})
    until(lambda: [b["jobid"] for b in world.engine.status()["blocks"] if b["tasks"]] == [before])
    gate.touch()
    assert world.end(task).value.stdout == "finished\n"
    assert count.read_text() == "run\n"


def test_a_block_that_ended_meanwhile_is_forgotten_and_its_task_runs_again(
    killed, make_blocks, tmp_path, flux_module
):
    count = tmp_path / "count"
    task = killed(f"echo run >> {count}; sleep 1000", count)
    [before] = recorded(tmp_path)
    handle = flux_module.Flux()
    flux_module.job.cancel(handle, before)
    assert [e.name for e in flux_module.job.event_watch(handle, before)][-1] == "clean"
    again = (buffer_of(ShellFunction("echo again")), ONE)
    world = make_blocks(engine={"recovers": {task: again}})
    assert world.end(task).value.stdout == "again\n"
    assert before not in recorded(tmp_path)


def test_blocks_of_another_instance_are_forgotten(make_blocks, tmp_path):
    directory = tmp_path / "engine" / "blocks" / "1234"
    directory.mkdir(parents=True)
    record = {"jobid": parse_jobid("ƒ1234"), "instance": "local:///nowhere"}
    (directory / "block.json").write_text(json.dumps(record))
    world = make_blocks()
    assert world.engine.status()["blocks"] == []
    assert not directory.exists()


BLOCKS = {"walltime": "10m", "grace": "1m", "idle_timeout": "10m"}


@pytest.fixture
def endpoint(uri, tmp_path, mark):
    return Endpoint("flux", tmp_path, workers_per_node=1, blocks=BLOCKS)


@pytest.fixture
def active(flux_module):
    """Gives the ids of the blocks that Flux has."""

    def ask():
        request = {
            "max_entries": 0,
            "attrs": ["name"],
            "constraint": {"and": [{"name": ["flux-endpoint-block"]}, {"states": ["active"]}]},
        }
        jobs = flux_module.Flux().rpc("job-list.list", request).get()["jobs"]
        return {job["id"] for job in jobs}

    return ask


def test_functions_in_a_block_run_once_though_the_engine_is_killed(endpoint):
    long = endpoint.add_work("long", 3)
    short = [endpoint.add_work(f"f{n}", 0.05) for n in range(40)]
    for begun in (1, 10, 25):
        process = endpoint.start()
        endpoint.await_begun(begun)
        endpoint.kill(process)
    endpoint.finish(endpoint.start())
    assert [endpoint.end(task).value for task in (long, *short)] == [
        "long",
        *(f"f{n}" for n in range(40)),
    ]
    assert set(endpoint.runs().values()) == {1}
    assert endpoint.begun.read_text().split().count("long") == 1


def test_a_block_requested_just_before_a_kill_is_found_again(endpoint, active):
    before = active()
    task = endpoint.add_work("f", 0)
    endpoint.await_death(endpoint.start(dies_at="a block was submitted"))
    [asked] = until(lambda: active() - before)
    process = endpoint.start()
    until(lambda: endpoint.recorded() == 1)
    assert (endpoint.directory / "results" / task).exists()
    endpoint.finish(process)
    assert asked not in active()
    logs = (endpoint.directory / "engine" / "blocks").glob("*.log")
    assert list(logs) == []


def test_results_left_by_an_ended_block_count(endpoint, active, flux_module):
    before = active()
    tasks = [endpoint.add_work(f"f{n}", 0) for n in range(5)]
    endpoint.await_death(endpoint.start(dies_at="a result comes"))
    done = endpoint.runs()
    for block in active() - before:
        flux_module.job.cancel(flux_module.Flux(), block)
    until(lambda: not active() - before)
    endpoint.finish(endpoint.start())
    assert [endpoint.end(task).value for task in tasks] == [f"f{n}" for n in range(5)]
    assert done
    assert set(endpoint.runs().values()) == {1}


def test_earlier_blocks_end_if_blocks_are_no_longer_configured(endpoint, active, mark):
    before = active()
    tasks = [endpoint.add_work(f"f{n}", 0) for n in range(5)]
    endpoint.await_death(endpoint.start(dies_at="a result comes"))
    assert active() - before
    del endpoint.config["blocks"]
    endpoint.config["max_nodes"] = 1
    endpoint.finish(endpoint.start())
    assert not active() - before
    assert [endpoint.end(task).value for task in tasks] == [f"f{n}" for n in range(5)]
    assert set(endpoint.runs().values()) == {1}
    until(lambda: not marked(mark))
