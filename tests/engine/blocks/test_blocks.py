"""Tasks run in blocks, which come and go with them."""

from __future__ import annotations

import subprocess

import pytest
from engine_world import buffer_of

from flux_endpoint.engine import FluxEngine
from flux_endpoint.engine.blocks.block import BlockLauncher
from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.paths import OUTPUT_LOG
from flux_endpoint.protocol.jobid import format_jobid
from waiting import until

pytestmark = pytest.mark.flux


def double(x):
    return 2 * x


def job_of_the_instance():
    """Return the id of the job that the Flux instance around this is."""
    import subprocess

    return subprocess.run(
        ["flux", "getattr", "jobid"], capture_output=True, text=True, check=True
    ).stdout.strip()


def wait_for(path):
    import pathlib
    import time

    while not pathlib.Path(path).exists():
        time.sleep(0.02)


def blocks_of(world, *states):
    return [b for b in world.engine.status()["blocks"] if not states or b["state"] in states]


def jobs_in(uri):
    """The ids of the active jobs of an instance."""
    command = ["flux", "proxy", uri, "flux", "jobs", "--no-header", "--format={id.f58}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_functions_commands_and_jobs_run_in_a_block(blocks):
    end = blocks.call(job_of_the_instance)
    assert end.value in {block["id"] for block in blocks_of(blocks)}
    assert blocks.call(double, 4).value == 8
    assert blocks.call(ShellFunction("echo {x}"), x="hello").value.stdout == "hello\n"
    ranks = blocks.call(
        MPIFunction("printenv FLUX_TASK_RANK"), spec={"num_nodes": 1, "ranks_per_node": 2}
    )
    assert sorted(ranks.value.stdout.split()) == ["0", "1"]


def test_many_short_tasks_end_once_each(blocks):
    ids = [blocks.submit(double, n) for n in range(300)]
    assert [end.value for end in blocks.ends(ids)] == [2 * n for n in range(300)]


def test_the_status_lists_the_blocks_and_adds_their_counters_up(blocks):
    assert blocks.call(double, 1).value == 2
    status = blocks.engine.status()
    block = status["blocks"][0]
    assert block["state"] == "ready"
    assert block["id"] == format_jobid(block["jobid"])
    assert block["nodes"] == 1
    assert block["expires"] > 0
    assert status["total_workers"] >= 2
    assert 1 <= status["worker_nodes"] <= status["managers"]
    assert status["executor"] == "flux"
    assert status["pending_tasks"] == 0


def test_a_task_with_more_nodes_than_a_block_is_refused_at_once(blocks):
    end = blocks.call(MPIFunction("true"), spec={"num_nodes": 2})
    assert end.code == "EngineRefusedTask"
    assert "asks for 2 nodes, and a block of this endpoint has 1" in end.text


def test_a_task_that_no_block_has_time_for_is_refused_with_the_numbers(blocks):
    for end in (
        blocks.call(double, 1, spec={"walltime": "1h"}),
        blocks.call(ShellFunction("true", walltime=3600)),
    ):
        assert end.code == "EngineRefusedTask"
        assert "walltime is 1h, and this endpoint's blocks run tasks of at most 4m" in end.text


def test_a_walltime_that_fresh_blocks_have_no_time_left_for_is_refused_too(make_blocks):
    # A block's time runs from the start of its job, before it can run anything.
    world = make_blocks(walltime="50s", grace="2s", max_blocks=2)
    end = world.call(ShellFunction("true", walltime=48))
    assert end.code == "EngineRefusedTask"
    assert "walltime is 48s, and 3 blocks had less" in end.text
    assert world.call(ShellFunction("echo here", walltime=5)).value.stdout == "here\n"


def test_a_limit_on_workers_does_not_limit_jobs(make_blocks):
    world = make_blocks(engine={"max_workers": 1})
    whole = {"num_nodes": 1, "ranks_per_node": 2, "exclusive": True}
    assert world.call(MPIFunction("true"), spec=whole).value.returncode == 0
    assert world.call(double, 1).value == 2


def test_a_wrong_resource_specification_is_refused(blocks):
    end = blocks.call(double, 1, spec={"num_node": 2})
    assert end.code == "EngineRefusedTask"
    assert "did you mean 'num_nodes'" in end.text


def test_a_job_of_the_enclosing_instance_is_followed(blocks, flux_module):
    spec = flux_module.job.JobspecV1.from_command(["true"])
    jobid = flux_module.job.submit(flux_module.Flux(), spec)
    assert blocks.end(blocks.attach(jobid)).value.returncode == 0


def test_blocks_grow_with_the_backlog_and_end_when_idle(make_blocks, tmp_path):
    world = make_blocks(max_blocks=2, idle_timeout=0.5)
    assert blocks_of(world) == []
    gate = tmp_path / "gate"
    ids = [world.submit(wait_for, str(gate)) for _ in range(4)]
    until(lambda: [b["tasks"] for b in blocks_of(world, "ready")] == [2, 2])
    gate.touch()
    assert [end.code for end in world.ends(ids)] == [None] * 4
    until(lambda: blocks_of(world) == [])
    until(lambda: list((tmp_path / "engine" / "blocks").iterdir()) == [])


def test_the_least_number_of_blocks_is_there_before_any_task(make_blocks):
    world = make_blocks(min_blocks=1, idle_timeout=0.1)
    until(lambda: blocks_of(world, "ready"))
    first = blocks_of(world)[0]["jobid"]
    assert world.call(double, 2).value == 4
    assert blocks_of(world)[0]["jobid"] == first


def test_a_job_of_a_block_s_size_spans_its_nodes(make_blocks):
    world = make_blocks(nodes_per_block=2)
    spec = {"num_nodes": 2, "ranks_per_node": 1}
    end = world.call(MPIFunction("printenv FLUX_JOB_NNODES"), spec=spec)
    assert end.value.stdout.split() == ["2", "2"]


def test_a_task_that_waits_for_a_block_can_be_ended(make_blocks, tmp_path):
    world = make_blocks(engine={"workers_per_node": 1})
    running = world.submit(wait_for, str(tmp_path / "gate"))
    until(lambda: [b["tasks"] for b in blocks_of(world, "ready")] == [1])
    waiting = world.submit(double, 1)
    world.engine.cancel(waiting)
    assert world.end(waiting).code == "TaskCancelled"
    world.engine.cancel(running)
    assert world.end(running).code == "TaskCancelled"


def test_blocks_that_never_start_fail_the_tasks_with_the_reason(make_blocks, monkeypatch):
    monkeypatch.setattr("flux_endpoint.engine.blocks.fleet.FIRST_BACKOFF", 0.02)
    world = make_blocks(nodes_per_block=99)
    held = world.submit_buffer(buffer_of(double, 1), urgency=0)
    end = world.call(double, 1)
    assert end.code == "WorkerLost"
    assert "no block could be started in 4 attempts" in end.text
    assert "unsatisfiable" in end.text
    world.engine.cancel(held)
    assert world.end(held).code == "TaskCancelled"  # it needed none


def test_a_failed_block_request_is_retried(make_blocks, monkeypatch):
    submit, failures = BlockLauncher.submit, iter([OSError(11, "try again")])

    def fails_once(self):
        for failure in failures:
            raise failure
        return submit(self)

    monkeypatch.setattr("flux_endpoint.engine.blocks.fleet.FIRST_BACKOFF", 0.05)
    world = make_blocks()
    monkeypatch.setattr(BlockLauncher, "submit", fails_once)
    assert world.call(double, 4).value == 8


def test_an_unusable_block_is_replaced(make_blocks, monkeypatch):
    monkeypatch.setattr("flux_endpoint.engine.blocks.fleet.FIRST_BACKOFF", 0.02)
    start, failed = FluxEngine.start, []

    def start_second(self, *args):
        if not failed:
            failed.append(self)
            raise ZeroDivisionError("without resources")
        start(self, *args)

    monkeypatch.setattr(FluxEngine, "start", start_second)
    world = make_blocks(max_blocks=1)
    assert world.call(double, 1).value == 2


def test_an_engine_that_stops_in_order_ends_its_blocks(make_blocks, tmp_path, uri):
    world = make_blocks()
    assert world.call(double, 2).value == 4
    (block,) = blocks_of(world)
    world.stop()
    assert block["id"] not in jobs_in(uri)
    assert list((tmp_path / "engine" / "blocks").iterdir()) == []


def prints(text):
    print(text)


def test_the_output_of_functions_is_kept_after_their_block_ended(make_blocks, tmp_path):
    world = make_blocks()
    assert world.call(prints, "from a worker").code is None
    assert world.call(prints, "from a rank", spec={"num_ranks": 1}).code is None
    world.stop()

    assert list((tmp_path / "engine" / "blocks").iterdir()) == []
    text = (tmp_path / OUTPUT_LOG).read_text()
    assert "from a worker\n" in text
    assert "from a rank\n" in text
