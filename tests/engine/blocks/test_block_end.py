"""A block's end, foreseen or not: what runs is told, what has not begun runs elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from engine_world import PATIENCE

from flux_endpoint.engine.blocks.states import BlockState
from flux_endpoint.functions import ShellFunction
from flux_endpoint.protocol.jobid import parse_jobid
from waiting import until

pytestmark = pytest.mark.flux

#: Seconds from the first signal to the end of a block, in `make_blocks`.
GRACE = 60.0


def where_am_i():
    import subprocess

    return subprocess.run(
        ["flux", "getattr", "jobid"], capture_output=True, text=True, check=True
    ).stdout.strip()


def hold(directory, name):
    """Say where this has begun, and wait for ever; but return that the second time."""
    import pathlib
    import subprocess
    import time

    command = ["flux", "getattr", "jobid"]
    block = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    begun = pathlib.Path(directory) / name
    if begun.exists():
        return block
    begun.write_text(block)
    while True:
        time.sleep(60)


def hold_on(directory, name):
    """The same, and don't let a signal end it."""
    import pathlib
    import signal
    import time

    signal.signal(signal.SIGTERM, lambda *_: None)
    (pathlib.Path(directory) / name).touch()
    while True:
        time.sleep(60)


def a_block(world, but=()):
    """Wait for a ready block; return its id."""

    def found():
        ready = (b["id"] for b in world.engine.status()["blocks"] if b["state"] == "ready")
        return next((each for each in ready if each not in but), None)

    return until(found)


def instance_of_a_block(world):
    """Return the URI of the Flux instance that the only block is."""
    return next(iter(world.engine._blocks.values())).engine.status()["instance"]


def ends_in(world, seconds):
    """Have the walltime of the ready blocks be over in so many seconds."""

    def shorten():
        for block in world.engine._blocks.values():
            if block.state is BlockState.READY:
                block.expires = time.time() + seconds

    world.engine._thread.call(shorten)


def test_a_block_s_walltime_as_flux_has_it(make_blocks):
    """Nothing is made up here: the block ends in 14 seconds."""
    world = make_blocks(walltime="14s", grace="3s")
    # One that needs too long to come up is followed by another.
    end = world.call(ShellFunction("sleep 1000"))
    assert end.code == "WorkerLost"
    assert "reached its walltime of 14s" in end.text


def test_a_running_command_that_handles_the_signal_has_its_own_result(make_blocks, tmp_path):
    world = make_blocks()
    begun = tmp_path / "begun"
    script = f"trap 'echo saved; exit 3' TERM; touch {begun}; while true; do sleep 0.1; done"
    task = world.submit(ShellFunction(script))
    until(begun.exists)
    ends_in(world, GRACE)
    value = world.end(task).value
    assert (value.returncode, value.stdout) == (3, "saved\n")


@pytest.mark.parametrize("spec", [None, {"num_nodes": 1}], ids=["worker", "job"])
def test_a_running_function_is_lost_with_the_reason(make_blocks, tmp_path, spec):
    world = make_blocks()
    task = world.submit(hold, str(tmp_path), "begun", spec=spec)
    block = until(lambda: Path(tmp_path / "begun").exists() and a_block(world))
    if spec:
        world.event(task, "start")
    ends_in(world, GRACE)
    end = world.end(task)
    assert end.code == "WorkerLost"
    assert f"the block {block} reached its walltime of 5m" in end.text


@pytest.mark.parametrize("spec", [None, {"num_nodes": 1}], ids=["worker", "job"])
def test_a_running_task_runs_again_elsewhere_as_its_retries_say(make_blocks, tmp_path, spec):
    world = make_blocks(engine={"max_retries_on_system_failure": 1})
    task = world.submit(hold, str(tmp_path), "begun", spec=spec)
    begun = tmp_path / "begun"
    first = until(lambda: begun.exists() and begun.read_text())
    if spec:
        world.event(task, "start")
    ends_in(world, GRACE)
    second = world.end(task).value
    assert (second[0] if spec else second) != first


def test_a_task_that_ignores_the_signal_is_lost_at_the_end_of_the_block(make_blocks, tmp_path):
    world = make_blocks()
    task = world.submit(hold_on, str(tmp_path), "begun")
    until((tmp_path / "begun").exists)
    block = a_block(world)
    ends_in(world, 3)
    end = world.end(task)
    assert end.code == "WorkerLost"
    assert f"the block {block} reached its walltime of 5m" in end.text


def test_a_job_that_has_not_started_in_time_runs_in_another_block(make_blocks, tmp_path):
    world = make_blocks()
    running = world.submit(hold, str(tmp_path), "begun", spec={"num_nodes": 1, "exclusive": True})
    until((tmp_path / "begun").exists)
    world.event(running, "start")
    first = a_block(world)
    waiting = world.submit(where_am_i, spec={"num_nodes": 1})
    ends_in(world, GRACE)
    assert world.end(running).code == "WorkerLost"
    assert world.end(waiting).value[0] != first


def test_a_task_starts_in_no_block_that_ends_before_its_walltime(make_blocks):
    """Although the block has nothing to do, and the task may be all that ever comes."""
    world = make_blocks()
    first = world.call(where_am_i).value
    ends_in(world, GRACE + 30)
    assert world.call(where_am_i).value == first  # this one has no walltime
    assert world.call(where_am_i, spec={"walltime": 40}).value != [first]


def test_a_block_that_an_administrator_ends_loses_what_it_ran_and_nothing_else(
    make_blocks, tmp_path, flux_module
):
    world = make_blocks(engine={"workers_per_node": 1})
    running = world.submit(hold, str(tmp_path), "begun")
    until((tmp_path / "begun").exists)
    waiting = world.submit(where_am_i)
    block = a_block(world)
    inner = instance_of_a_block(world)
    flux_module.job.cancel(flux_module.Flux(), parse_jobid(block), "node is needed")
    end = world.end(running)
    assert end.code == "WorkerLost"
    # That its broker is gone may be seen before the word of its end comes in.
    whys = (f"the block {block} was ended: node is needed", f"the Flux instance at {inner} is gone")
    assert any(why in end.text for why in whys), end
    assert world.end(waiting).value != block


def test_a_block_whose_broker_dies_loses_what_it_ran_and_nothing_else(make_blocks, tmp_path):
    world = make_blocks(engine={"max_retries_on_system_failure": 1})
    task = world.submit(hold, str(tmp_path), "begun")
    until((tmp_path / "begun").exists)
    block = a_block(world)
    inner = instance_of_a_block(world)
    command = ["flux", "proxy", inner, "flux", "getattr", "broker.pid"]
    pid = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    os.kill(int(pid), signal.SIGKILL)
    assert world.end(task).value != block


def test_the_end_of_the_enclosing_instance_is_reported(make_blocks, tmp_path, monkeypatch):
    from flux_instance import FluxInstance

    with FluxInstance(1) as instance:
        monkeypatch.setenv("FLUX_URI", instance.uri)
        world = make_blocks()
        task = world.submit(hold, str(tmp_path), "begun")
        until((tmp_path / "begun").exists)
        instance.kill()
        world.wait_lost()
        world.stop()
        assert world.end(task, PATIENCE).code == "WorkerLost"
