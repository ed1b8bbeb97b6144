"""An engine that was killed leaves its blocks, and the next finds them again."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from engine_world import buffer_of, until

from flux_endpoint.functions import ShellFunction
from flux_endpoint.protocol.jobid import parse_jobid

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


def test_a_running_block_is_found_again_and_its_task_goes_on(killed, make_blocks, tmp_path):
    count, gate = tmp_path / "count", tmp_path / "gate"
    command = f"echo run >> {count}; while [ ! -e {gate} ]; do sleep 0.05; done; echo finished"
    task = killed(command, count)
    [before] = recorded(tmp_path)
    world = make_blocks()
    world.submit_buffer(buffer_of(ShellFunction(command)), ONE, task_id=task)
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
    world = make_blocks()
    again = world.submit_buffer(buffer_of(ShellFunction("echo again")), ONE, task_id=task)
    assert world.end(again).value.stdout == "again\n"
    assert before not in recorded(tmp_path)


def test_blocks_of_another_instance_are_forgotten(make_blocks, tmp_path):
    directory = tmp_path / "engine" / "blocks" / "1234"
    directory.mkdir(parents=True)
    record = {"jobid": parse_jobid("ƒ1234"), "instance": "local:///nowhere"}
    (directory / "block.json").write_text(json.dumps(record))
    world = make_blocks()
    assert world.engine.status()["blocks"] == []
    assert not directory.exists()
