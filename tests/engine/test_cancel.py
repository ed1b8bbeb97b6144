"""Ending a task on request, wherever it is, with everything that it started."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from engine_world import End, World, buffer_of, fresh_seconds, processes

from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.protocol.exceptions import EXCEPTION, RAISED, exception_from
from flux_endpoint.protocol.run_options import RunOptions
from flux_endpoint.protocol.states import TaskState
from waiting import until

JOB = {"num_ranks": 1}
#: A command with all the kinds of processes that are hard to get rid of.
NO_DAEMON = "trap '' TERM; sleep {s} & sleep {s}; sleep {s}"
STUBBORN = "setsid sh -c \"trap '' TERM; sleep {s}; sleep {s}\" & " + NO_DAEMON


def double(x):
    return x * 2


def hold(directory, name):
    import os
    import pathlib
    import time

    (pathlib.Path(directory) / f"started-{name}").write_text(str(os.getpid()))
    while not (pathlib.Path(directory) / "gate").exists():
        time.sleep(0.01)
    return name


def stubborn(started):
    import pathlib
    import signal
    import time

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path(started).touch()
    while True:
        time.sleep(1)


def answers_sigterm(started):
    import pathlib
    import signal
    import time

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pathlib.Path(started).touch()
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        return "finished all the same"


def is_cancelled(world: World, task_id: str) -> bool:
    end = world.end(task_id)
    assert end.text.startswith("TaskCancelled"), end
    return end.code == "TaskCancelled"


def test_cancelling_an_unknown_task_does_nothing(world: World):
    world.engine.cancel("00000000-0000-0000-0000-00000000dead")
    assert world.call(double, 1).value == 2


def test_a_running_function_is_ended_and_its_neighbours_are_not(world: World, tmp_path):
    neighbour = world.submit(hold, str(tmp_path), "neighbour")
    task = world.submit(hold, str(tmp_path / "."), "victim")
    until((tmp_path / "started-victim").exists)
    seen = (tmp_path / "started-victim").stat().st_mtime_ns
    world.engine.cancel(task)
    assert is_cancelled(world, task)
    # However soon it is ended, when it ran is told.
    start, end = world.end(task).message.task_statuses or []
    assert (start.state, end.state) == (TaskState.EXEC_START, TaskState.EXEC_END)
    coarse = 10**8  # a file system's clock lags behind
    assert start.timestamp < seen + coarse
    assert seen < end.timestamp + coarse
    (tmp_path / "gate").touch()
    assert world.end(neighbour).value == "neighbour"


@pytest.mark.parametrize("function", [stubborn, answers_sigterm])
def test_a_function_that_handles_sigterm_is_ended(world: World, tmp_path, function):
    task = world.submit(function, str(tmp_path / "started"))
    until((tmp_path / "started").exists)
    world.engine.cancel(task)
    assert is_cancelled(world, task)
    assert world.call(double, 1).value == 2


def test_queued_tasks_are_cancelled_without_running(make_world, tmp_path):
    world = make_world(workers_per_node=1)
    first = world.submit(hold, str(tmp_path), "first")
    until((tmp_path / "started-first").exists)
    queued = [world.submit(hold, str(tmp_path), f"queued{n}") for n in range(6)]
    for task in queued[::2]:
        world.engine.cancel(task)
    assert all(is_cancelled(world, task) for task in queued[::2])
    (tmp_path / "gate").touch()
    assert world.end(first).value == "first"
    assert [end.value for end in world.ends(queued[1::2])] == ["queued1", "queued3", "queued5"]
    assert not list(tmp_path.glob("started-queued[024]"))


def test_tasks_queued_at_a_worker_are_cancelled_alone(make_world, tmp_path):
    world = make_world(workers_per_node=1)
    world.ends([world.submit(double, n) for n in range(300)])  # from now on several are sent ahead
    ids = [world.submit(hold, str(tmp_path), n) for n in range(10)]
    until((tmp_path / "started-0").exists)
    for task in ids[::2]:
        world.engine.cancel(task)
    assert all(is_cancelled(world, task) for task in ids[::2])
    (tmp_path / "gate").touch()
    assert [end.value for end in world.ends(ids[1::2])] == [1, 3, 5, 7, 9]


def test_cancelling_one_of_many_short_tasks_affects_no_other(make_world):
    world = make_world(workers_per_node=2, max_retries_on_system_failure=0)
    ids = [world.submit(double, n) for n in range(2000)]
    for task in ids[::50]:
        world.engine.cancel(task)
    ends = world.ends(ids)
    assert {end.code for end in ends} <= {None, "TaskCancelled"}
    assert all(end.code is None for n, end in enumerate(ends) if n % 50)


@pytest.mark.parametrize("spec", [None, JOB], ids=["worker", "job"])
def test_a_commands_whole_process_tree_ends(world: World, spec):
    # What leaves its session in a job on Flux is for the site to contain.
    command = STUBBORN if world.kind == "local" or spec is None else NO_DAEMON
    seconds = [fresh_seconds() for _ in range(2)]
    tasks = [world.submit(ShellFunction(command), s=s, spec=spec) for s in seconds]
    until(lambda: all(len(processes(s)) >= 3 for s in seconds))
    for task in tasks:
        world.engine.cancel(task)
    assert all(is_cancelled(world, task) for task in tasks)
    until(lambda: not any(processes(s) for s in seconds))


def test_a_running_job_is_ended_on_all_its_nodes(world: World):
    seconds = fresh_seconds()
    spec = {"num_nodes": 2}
    task = world.submit(MPIFunction("sleep {s}"), s=seconds, spec=spec)
    until(lambda: len(processes(seconds)) >= 2)
    world.engine.cancel(task)
    assert is_cancelled(world, task)
    until(lambda: not processes(seconds))


def test_a_script_with_its_own_instance_is_ended(world: World):
    seconds = fresh_seconds()
    function = MPIFunction("true;\nsleep {s} &\n$PARSL_MPI_PREFIX sleep {s}")
    task = world.submit(function, s=seconds, spec={"num_ranks": 2})
    until(lambda: len(processes(seconds)) >= 3)
    world.engine.cancel(task)
    assert is_cancelled(world, task)
    until(lambda: not processes(seconds))


def test_a_held_job_is_cancelled_without_running(world: World, tmp_path):
    ran = tmp_path / "ran"
    task = world.submit(ShellFunction(f"touch {ran}"), spec={**JOB, "urgency": 0})
    world.event(task, "priority")
    world.engine.cancel(task)
    assert is_cancelled(world, task)
    assert not ran.exists()


def test_a_job_cancelled_at_once_ends_cancelled(world: World, tmp_path):
    ids = []
    for _ in range(5):
        ids.append(world.submit(ShellFunction("sleep 100"), spec=JOB))
        world.engine.cancel(ids[-1])
    assert all(is_cancelled(world, task) for task in ids)
    assert world.engine.counters()["jobs"] == 0


@pytest.mark.parametrize("spec", [None, JOB], ids=["worker", "job"])
def test_a_signal_reaches_the_command_and_does_not_end_the_task(world: World, spec, tmp_path):
    ready = tmp_path / "ready"
    command = f"trap 'echo got it; exit 5' USR1; touch {ready}; while :; do sleep 0.05; done"
    task = world.submit(ShellFunction(command), spec=spec)
    until(ready.exists)
    if spec:
        world.event(task, "start")
    world.engine.cancel(task, signal.SIGUSR1)
    result = world.end(task).value
    assert (result.returncode, result.stdout) == (5, "got it\n")


def test_a_function_that_dies_of_the_signal_sent_on_request_was_ended_not_lost(
    make_world, tmp_path: Path
):
    world = make_world(workers_per_node=1, max_retries_on_system_failure=3)
    task = world.submit(hold, str(tmp_path), 1)
    until((tmp_path / "started-1").exists)
    world.engine.cancel(task, signal.SIGINT)
    end = world.end(task)
    assert "KeyboardInterrupt" in end.text
    task = world.submit(hold, str(tmp_path), 2)
    until((tmp_path / "started-2").exists)
    world.engine.cancel(task, signal.SIGUSR1)
    assert is_cancelled(world, task)


def test_a_signal_to_a_queued_task_does_nothing(make_world, tmp_path: Path):
    world = make_world(workers_per_node=1)
    world.ends([world.submit(double, n) for n in range(300)])  # from now on several are sent ahead
    *ids, last = [world.submit(hold, str(tmp_path), n) for n in range(5)]
    until((tmp_path / "started-0").exists)
    for task in (*ids[1:], last):
        world.engine.cancel(task, signal.SIGUSR1)
    world.engine.cancel(last)
    assert is_cancelled(world, last)  # the signals came before that
    (tmp_path / "gate").touch()
    assert [end.value for end in world.ends(ids)] == [0, 1, 2, 3]


def test_a_signal_to_a_job_that_waits_does_nothing(world: World):
    task = world.submit(ShellFunction("true"), spec={**JOB, "urgency": 0})
    world.event(task, "priority")
    world.engine.cancel(task, signal.SIGUSR1)
    assert world.call(ShellFunction("true"), spec=JOB).value.returncode == 0  # it came after that
    assert not world.has_ended(task)
    world.engine.cancel(task)
    assert is_cancelled(world, task)


def is_overdue(end: End) -> bool:
    assert end.code == "RemoteExecutionError", end
    details = end.message.details or {}
    assert isinstance(exception_from(details[EXCEPTION]), TimeoutError)
    assert str(details[RAISED]).split()[:2] == ["TimeoutError", "OSError"]
    return "longer than 100ms, its time_limit; its worker was ended" in end.text


def test_a_function_that_runs_longer_than_its_limit_is_ended(world: World, tmp_path):
    neighbour = world.submit(hold, str(tmp_path), "neighbour")
    limit = RunOptions(time_limit=0.1)
    tasks = [
        world.submit_buffer(buffer_of(hold, str(tmp_path), "late"), options=limit),
        world.submit_buffer(buffer_of(stubborn, str(tmp_path / "started")), options=limit),
    ]
    assert all(map(is_overdue, world.ends(tasks)))
    start, end = world.end(tasks[0]).message.task_statuses or []
    assert (start.state, end.state) == (TaskState.EXEC_START, TaskState.EXEC_END)
    (tmp_path / "gate").touch()
    assert world.end(neighbour).value == "neighbour"


def test_a_command_that_runs_longer_than_its_limit_is_ended_with_its_processes(world: World):
    seconds = fresh_seconds()
    command = ShellFunction(STUBBORN.format(s=seconds))
    task = world.submit_buffer(buffer_of(command), options=RunOptions(time_limit=0.1))
    assert is_overdue(world.end(task))
    until(lambda: not processes(seconds))


def test_the_time_of_a_task_begins_with_its_start(world: World):
    # Many, so that some wait behind others of the same worker.
    limit = RunOptions(time_limit=50.0)
    tasks = [world.submit_buffer(buffer_of(double, n), options=limit) for n in range(200)]
    assert [end.value for end in world.ends(tasks)] == [2 * n for n in range(200)]
