"""Managers come and go, workers are lost, and no task with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from engine_world import fresh_seconds, manager_processes, marked, processes

from flux_endpoint.engine.workers import lifecycle
from flux_endpoint.functions import ShellFunction
from foreground import Process
from waiting import until


def double(x):
    return x * 2


def where_am_i():
    """Return which manager runs this."""
    import os

    import psutil

    return psutil.Process(os.getppid()).ppid()


def killed():
    import os

    os.kill(os.getpid(), 9)


def killed_until(path, times):
    """Lose the worker as often as that, then return how often it was."""
    import os
    import pathlib

    with pathlib.Path(path).open("a") as file:
        file.write("x")
    count = pathlib.Path(path).stat().st_size
    if count <= times:
        os.kill(os.getpid(), 9)
    return count


def hold(directory, name):
    """Say that this has begun, and wait for the gate to open."""
    import os
    import pathlib
    import time

    (pathlib.Path(directory) / f"started-{name}").write_text(str(os.getpid()))
    while not (pathlib.Path(directory) / "gate").exists():
        time.sleep(0.01)
    return name


def started(directory: Path) -> list[Path]:
    return list(directory.glob("started-*"))


def test_a_task_that_loses_its_worker_is_tried_again(make_world, tmp_path):
    world = make_world(max_retries_on_system_failure=2, workers_per_node=1)
    assert world.call(killed_until, str(tmp_path / "count"), 2).value == 3


def test_a_task_that_loses_every_worker_lists_each_attempt(make_world):
    world = make_world(max_retries_on_system_failure=2, workers_per_node=1)
    end = world.call(killed)
    assert end.code == "WorkerLost"
    assert "3 attempts failed" in end.text
    for attempt in (1, 2, 3):
        assert f"attempt {attempt}: the worker process was killed by signal 9" in end.text
    assert world.call(double, 4).value == 8


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("retries", [0, 1])
def test_a_killed_manager_loses_no_task(make_world, tmp_path, mark, retries):
    world = make_world(max_retries_on_system_failure=retries, workers_per_node=2)
    ids = [world.submit(hold, str(tmp_path), n) for n in range(6)]
    until(lambda: len(started(tmp_path)) == 2)
    [manager] = manager_processes(mark)
    manager.kill()
    (tmp_path / "gate").touch()
    ends = world.ends(ids)
    if retries:
        assert [end.value for end in ends] == list(range(6))
    else:
        lost = [end for end in ends if end.code]
        assert len(lost) == 2  # what it ran, and nothing that waited
        assert all(end.code == "WorkerLost" and "ended" in end.text for end in lost)
    assert world.call(double, 1).value == 2


def test_a_terminated_manager_ends_its_workers_and_is_replaced(make_world, mark):
    world = make_world(workers_per_node=1)
    seconds = fresh_seconds()
    task = world.submit(ShellFunction(f"sleep {seconds}"))
    until(lambda: processes(seconds))
    [manager] = manager_processes(mark)
    manager.terminate()
    assert world.end(task).code == "WorkerLost"
    until(lambda: not processes(seconds))
    assert world.call(double, 1).value == 2


def test_workers_that_cannot_start_fail_the_tasks_with_the_reason(make_world, monkeypatch):
    monkeypatch.setattr(lifecycle, "_FIRST_BACKOFF", 0.05)
    # No attempt is on its way any more when the last one ends.
    world = make_world(min_nodes=0, workers_per_node=1)
    monkeypatch.setenv("PYTHONHOME", "/where/no/python/is")
    ids = [world.submit(double, n) for n in range(3)]
    for end in world.ends(ids):
        assert end.code == "WorkerLost"
        assert "no workers could be started in 4 attempts" in end.text
        assert "status 1" in end.text
        assert "/where/no/python/is" in end.text
    assert "status 1" in world.engine.counters()["workers_error"]
    monkeypatch.delenv("PYTHONHOME")
    assert world.call(double, 1).value == 2  # as soon as it is put right
    assert world.engine.counters()["workers_error"] == ""


def test_without_min_nodes_nothing_runs_until_there_is_a_task(make_world, mark):
    world = make_world(min_nodes=0, idle_timeout=0.3)
    assert world.engine.counters()["managers"] == 0
    assert manager_processes(mark) == []
    assert world.call(double, 1).value == 2


def test_idle_nodes_are_given_back_and_taken_again(make_world, mark):
    world = make_world(min_nodes=0, idle_timeout=0.3)
    for _ in range(2):
        assert world.call(double, 3).value == 6
        until(lambda: world.engine.counters()["managers"] == 0)
        until(lambda: not manager_processes(mark))


def test_min_nodes_exist_from_the_start(make_world):
    world = make_world(min_nodes=2, max_nodes=2, workers_per_node=1)
    until(lambda: world.engine.counters()["managers"] == 2)


def test_min_nodes_stay_when_idle(make_world, tmp_path, mark):
    world = make_world(min_nodes=1, max_nodes=2, workers_per_node=1, idle_timeout=0.3)
    ids = [world.submit(hold, str(tmp_path), n) for n in range(2)]
    until(lambda: len(manager_processes(mark)) == 2)
    (tmp_path / "gate").touch()
    world.ends(ids)
    until(lambda: len(manager_processes(mark)) == 1)
    [manager] = manager_processes(mark)
    assert world.call(where_am_i).value == manager.pid


def test_many_tasks_spread_over_the_nodes_but_not_over_more_than_allowed(make_world, tmp_path):
    world = make_world(max_nodes=3, workers_per_node=2)
    ids = [world.submit(hold, str(tmp_path), n) for n in range(20)]
    until(lambda: len(started(tmp_path)) == 6)
    # However many managers they were started as: that goes by how fast the tasks came.
    now = world.engine.status()
    assert (now["total_workers"] + now["starting_workers"], now["max_workers"]) == (6, 6)
    (tmp_path / "gate").touch()
    assert [end.value for end in world.ends(ids)] == list(range(20))


def test_tasks_that_wait_on_a_busy_node_get_another(make_world, tmp_path):
    world = make_world(max_nodes=2, workers_per_node=1)
    assert world.call(double, 1).value == 2  # one node is there
    ids = [world.submit(hold, str(tmp_path), n) for n in range(2)]
    until(lambda: len(started(tmp_path)) == 2)
    (tmp_path / "gate").touch()
    world.ends(ids)


def test_an_idle_node_takes_tasks_that_wait_on_another(make_world, tmp_path):
    world = make_world(max_nodes=2, min_nodes=2, workers_per_node=1)
    until(lambda: world.engine.counters()["managers"] == 2)
    ids = [world.submit(hold, str(tmp_path), n) for n in range(2)]
    until(lambda: len(started(tmp_path)) == 2)
    # Each node now holds one that runs and some that wait.
    (tmp_path / "more").mkdir()
    ids += [world.submit(hold, str(tmp_path / "more"), n) for n in range(2)]
    pid = until(started(tmp_path)[0].read_text)  # it may have only just begun to write it
    os.kill(int(pid), signal.SIGKILL)
    until(lambda: started(tmp_path / "more"))
    (tmp_path / "more" / "gate").touch()
    assert [end.code for end in world.ends(ids[2:])] == [None, None]
    (tmp_path / "gate").touch()
    assert sorted(str(end.code) for end in world.ends(ids[:2])) == ["None", "WorkerLost"]


def test_stop_lets_a_running_task_finish(make_world, tmp_path):
    world = make_world(workers_per_node=1)
    task = world.submit(hold, str(tmp_path), 1)
    until(lambda: started(tmp_path))
    late = subprocess.Popen(["sh", "-c", 'sleep 0.5; touch "$0/gate"', str(tmp_path)])
    world.stop(grace=20.0)
    late.wait()
    assert world.end(task).value == 1


def test_stop_without_grace_ends_running_tasks_without_a_result(make_world, tmp_path, mark):
    world = make_world(workers_per_node=1)
    task = world.submit(hold, str(tmp_path), 1)
    waiting = world.submit(double, 1)
    until(lambda: started(tmp_path))
    world.stop(grace=0.0)
    assert not world.has_ended(task)
    assert not world.has_ended(waiting)
    until(lambda: not marked(mark))


def test_stop_leaves_no_process_and_no_file_but_its_directories(
    make_world, tmp_path, mark, monkeypatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    world = make_world()
    world.call(double, 1)
    world.call(ShellFunction("true"), spec={"num_ranks": 1})
    world.stop()
    until(lambda: not marked(mark))
    assert [path.name for path in (tmp_path / "engine").rglob("*")] == ["jobs"]
    assert list(temporary.iterdir()) == []


def test_stop_just_after_start_ends_a_starting_manager(make_world, mark):
    world = make_world()
    world.stop()
    until(lambda: not marked(mark))


@pytest.mark.usefixtures("whole")
def test_stop_ends_a_manager_that_does_not_answer(make_world, mark, monkeypatch):
    monkeypatch.setattr(lifecycle, "_END_TIMEOUT", 0.2)
    world = make_world()
    world.call(double, 1)
    [manager] = manager_processes(mark)
    manager.send_signal(signal.SIGSTOP)
    world.stop()
    until(lambda: not marked(mark))


def test_an_engine_starts_again_after_it_stopped(make_world, tmp_path):
    for n in range(2):
        world = make_world(tmp_path)
        assert world.call(double, n).value == 2 * n
        world.stop()


_AGENT = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from engine_world import World, ShellFunction
world = World(sys.argv[1], Path(sys.argv[2]), min_nodes=4)
def one(): return 1
assert world.call(one).value == 1
world.submit(ShellFunction(f"sleep {sys.argv[4]}"))
print("ready", flush=True)
sys.stdin.read()
"""


def _killed_agent(kind: str, directory: Path) -> str:
    """Run an engine in a process that is killed with a task running; return the task's mark."""
    seconds = fresh_seconds()
    program = directory / "agent.py"
    program.write_text(_AGENT)
    command = [
        sys.executable,
        str(program),
        kind,
        str(directory),
        str(Path(__file__).parent),
        seconds,
    ]
    # What a killed program leaves in its temporary directory goes with the test's own.
    environment = {**os.environ, "TMPDIR": str(directory)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with Process(command, env=environment, **pipes) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"ready\n"
        until(lambda: any(process.pid != agent.pid for process in processes(seconds)))
        agent.kill()
    return seconds


def test_after_the_agent_was_killed_the_next_one_gets_the_nodes(kind, make_world, tmp_path):
    seconds = _killed_agent(kind, tmp_path)
    world = make_world(tmp_path)
    assert world.call(double, 1).value == 2
    until(lambda: not processes(seconds))
