"""Tasks on resident workers: what goes in, what comes out, on either executor."""

from __future__ import annotations

import os
import signal
import time

import pytest
from engine_world import World, buffer_of, fresh_seconds, processes

from flux_endpoint.functions import ShellFunction
from flux_endpoint.protocol.states import TaskState
from waiting import until

MIB = 2**20


def double(x):
    return x * 2


def boom(x):
    raise ValueError(f"no {x} here")


def text_of(size):
    return "x" * size


def length(text):
    return len(text)


def environment():
    import os

    return dict(os.environ)


def killed_by(signum):
    import os

    os.kill(os.getpid(), signum)


def killed_later(path):
    import os
    import pathlib
    import time

    while not pathlib.Path(path).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), 9)


def gone(code):
    import os

    os._exit(code)


def wait_for(path, started):
    import pathlib
    import time

    pathlib.Path(started).touch()
    while not pathlib.Path(path).exists():
        time.sleep(0.01)


def ignored():
    import signal

    return [int(n) for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN]


def test_tasks_ignore_no_signal_that_the_agent_was_started_to_ignore(make_world):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        world = make_world()
        end = world.call(ignored)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert set(end.value) == {signal.SIGPIPE, signal.SIGXFSZ}


def test_a_task_returns_its_value(world: World):
    assert world.call(double, 21).value == 42


def test_a_result_says_who_ran_it_and_when(world: World):
    message = world.call(double, 1).message
    assert message.details["python_version"]
    assert message.details["endpoint_id"] == world.endpoint_id
    states = [status.state for status in message.task_statuses]
    assert states == [TaskState.EXEC_START, TaskState.EXEC_END]
    first, last = message.task_statuses
    assert 0 < first.timestamp <= last.timestamp


def test_a_thousand_tasks_give_a_thousand_right_answers(world: World):
    ids = [world.submit_buffer(buffer_of(double, n)) for n in range(1000)]
    assert [end.value for end in world.ends(ids)] == [n * 2 for n in range(1000)]


def test_an_exception_comes_with_the_traceback_of_the_users_code_alone(world: World):
    end = world.call(boom, 3)
    assert end.code == "RemoteExecutionError"
    assert end.text.startswith("Traceback (most recent call last):")
    assert "ValueError: no 3 here" in end.text
    assert "engine/task.py" not in end.text


def test_an_exception_whose_text_fails_is_still_a_failure(world: World):
    def nasty():
        class NastyError(Exception):
            def __str__(self):
                raise RuntimeError("no text")

        raise NastyError

    end = world.call(nasty)
    assert end.code == "RemoteExecutionError"
    assert "NastyError" in end.text


def test_an_endless_error_text_is_cut_to_what_can_be_sent(world: World):
    def long_winded():
        raise ValueError("x" * 2**24 + "the end")

    end = world.call(long_winded)
    assert end.code == "RemoteExecutionError"
    assert end.size < 2 * MIB
    assert "ValueError: xxx" in end.text
    assert end.text.rstrip().endswith("the end")


@pytest.mark.parametrize("code", [0, 3, "why not"])
def test_sys_exit_in_a_task_is_an_exception_like_any_other(world: World, code):
    def leave(code):
        import sys

        sys.exit(code)

    end = world.call(leave, code)
    assert end.code == "RemoteExecutionError"
    assert f"SystemExit: {code}" in end.text
    assert world.call(double, 1).value == 2


def test_a_result_of_nine_mib_is_fine(world: World):
    assert len(world.call(text_of, 9 * MIB).value) == 9 * MIB


def test_a_result_of_eleven_mib_is_refused_with_the_limit(world: World):
    end = world.call(text_of, 11 * MIB)
    assert end.code == "MaxResultSizeExceeded"
    assert str(10 * MIB) in end.text
    assert "write it to a file" in end.text


def test_arguments_of_nine_mib_arrive(world: World):
    assert world.call(length, text="y" * (9 * MIB)).value == 9 * MIB


def test_a_result_that_cannot_be_serialized_says_why(world: World):
    def generator():
        return (n for n in range(3))

    end = world.call(generator)
    assert end.code == "CouldNotExecuteUserTaskError"
    assert "generator" in end.text


def test_a_result_whose_serialization_raises_is_a_failure(world: World):
    def make():
        class Bad:
            def __reduce__(self):
                raise ZeroDivisionError("in the middle of pickling")

        return Bad()

    end = world.call(make)
    assert end.code == "CouldNotExecuteUserTaskError"
    assert "in the middle of pickling" in end.text


def test_a_task_that_cannot_be_deserialized_says_what_to_do(world: World):
    for buffer in ("not a task", "3\n01\nabc", buffer_of(double, 1).replace("gA", "!!", 1)):
        end = world.end(world.submit_buffer(buffer))
        assert end.code == "CouldNotExecuteUserTaskError", buffer
        assert "can't be deserialized" in end.text


def test_the_submitters_choice_of_result_serializers_is_followed(world: World):
    json_data = "globus_compute_sdk.serialize.JSONData"
    end = world.call(double, 4, serializers=[json_data])
    assert end.message.data.startswith("11\n")
    assert end.value == 8

    def a_set():
        return {1}

    end = world.call(a_set, serializers=[json_data])
    assert end.code == "CouldNotExecuteUserTaskError"
    assert "JSON" in end.text


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_killed_during_a_task_is_reported_with_the_signal(world: World, signum):
    end = world.call(killed_by, int(signum))
    assert end.code == "WorkerLost"
    assert f"signal {int(signum)} ({signum.name})" in end.text
    assert world.call(double, 2).value == 4


@pytest.mark.parametrize("code", [0, 7])
def test_a_worker_that_exits_during_a_task_is_reported_with_its_exit_code(world: World, code):
    end = world.call(gone, code)
    assert end.code == "WorkerLost"
    assert f"exit code {code}" in end.text
    assert world.call(double, 2).value == 4


def test_tasks_beside_a_lost_one_are_not_lost(world: World):
    ids = []
    for n in range(100):
        ids.append(world.submit(double, n))
        if n % 10 == 5:
            world.submit(killed_by, int(signal.SIGKILL))
    assert [end.value for end in world.ends(ids)] == [2 * n for n in range(100)]


def test_fifty_shell_functions_return_their_output(world: World):
    ids = [world.submit(ShellFunction("echo {n}"), n=n) for n in range(50)]
    ends = [end.value for end in world.ends(ids)]
    assert [(r.returncode, r.stdout) for r in ends] == [(0, f"{n}\n") for n in range(50)]


def test_a_shell_functions_walltime_ends_everything_it_started(world: World):
    seconds = fresh_seconds()
    command = f"setsid sleep {seconds} & trap '' TERM; sleep {seconds}"
    result = world.call(ShellFunction(command, walltime=0.5)).value
    assert result.returncode == 124
    assert processes(seconds) == []


def test_standard_input_is_empty(world: World):
    def read_all():
        import sys

        return sys.stdin.read()

    assert world.call(read_all).value == ""
    assert world.call(ShellFunction("cat")).value.returncode == 0


def test_a_task_may_close_its_standard_streams(world: World):
    def close_all():
        import os
        import sys

        sys.stdout.close()
        sys.stderr.close()
        os.closerange(0, 3)
        return "closed"

    assert world.call(close_all).value == "closed"
    ids = [world.submit(double, n) for n in range(20)]
    assert [end.value for end in world.ends(ids)] == [2 * n for n in range(20)]
    assert world.call(ShellFunction("echo fine")).value.stdout == "fine\n"


def test_a_task_that_closes_every_descriptor_affects_only_itself(world: World):
    def close_all():
        import os

        os.closerange(3, 4096)

    assert world.call(close_all).code == "WorkerLost"
    assert world.call(double, 1).value == 2


def test_a_task_that_leaves_a_daemon_does_not_wait_for_it(world: World):
    def daemonize(seconds):
        import os
        import subprocess

        if os.fork() == 0:
            os.setsid()
            subprocess.Popen(["sleep", seconds])
            os._exit(0)

    seconds = fresh_seconds()
    assert world.call(daemonize, seconds).value is None
    assert world.call(double, 1).value == 2
    for process in until(lambda: processes(seconds)):
        process.kill()


def test_a_forked_child_that_returns_from_the_task_gives_no_second_result(world: World):
    def both():
        import os

        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return pid > 0

    assert world.call(both).value is True
    ids = [world.submit(double, n) for n in range(50)]
    assert [end.value for end in world.ends(ids)] == [2 * n for n in range(50)]


def test_a_tasks_working_directory_and_id_are_its_own(world: World):
    def where():
        import os
        import pathlib

        here = str(pathlib.Path.cwd())
        os.chdir("/")
        return here, os.environ["GC_TASK_UUID"], os.environ.get("GC_TASK_SANDBOX_DIR")

    for _ in range(4):
        task_id = world.submit(where)
        here, uuid, sandbox = world.end(task_id).value
        assert here == str(world.directory / "tasks_working_dir")
        assert uuid == task_id
        assert sandbox is None


def test_workers_see_neither_secrets_nor_the_engines_settings(make_world, monkeypatch):
    monkeypatch.setenv("FLUX_ENDPOINT_TOKEN", "very secret")
    monkeypatch.setenv("FLUX_TASK_RANK", "5")
    monkeypatch.setenv("OF_THE_SITE", "is kept")
    seen = make_world(workers_per_node=1).call(environment).value
    assert "FLUX_ENDPOINT_TOKEN" not in seen
    assert "FLUX_ENDPOINT_MANAGER" not in seen
    assert "very secret" not in seen.values()
    assert seen.get("FLUX_TASK_RANK") != "5"
    assert seen["OF_THE_SITE"] == "is kept"


def test_every_task_has_a_sandbox_where_the_site_wants_that(make_world):
    def leave_a_file():
        import os
        import pathlib

        pathlib.Path("mine").touch()
        here = pathlib.Path.cwd()
        return str(here), os.environ["GC_TASK_SANDBOX_DIR"], [path.name for path in here.iterdir()]

    world = make_world(run_in_sandbox=True, working_dir="work", workers_per_node=1)
    ids = [world.submit(leave_a_file) for _ in range(3)]
    for task_id, end in zip(ids, world.ends(ids), strict=True):
        own = str(world.directory / "work" / task_id)
        assert end.value == (own, own, ["mine"])
    task_id = world.submit(ShellFunction("pwd"))
    assert world.end(task_id).value.stdout == f"{world.directory / 'work' / task_id}\n"


def test_a_working_directory_that_cannot_be_made_fails_tasks_with_its_name(make_world, tmp_path):
    world = make_world(working_dir="file/below", workers_per_node=1)
    (tmp_path / "file" / "below").rmdir()
    (tmp_path / "file").rmdir()
    (tmp_path / "file").touch()
    end = world.call(double, 1)
    assert end.code is not None
    assert "file/below" in end.text


def test_strategies_that_the_site_does_not_allow_are_refused(make_world):
    world = make_world(
        workers_per_node=1,
        allowed_serializers=[
            "globus_compute_sdk.serialize.DillCode",
            "globus_compute_sdk.serialize.DillDataBase64",
        ],
    )
    end = world.call(double, 1)  # travels as source
    assert end.code == "CouldNotExecuteUserTaskError"
    assert "DillCodeSource" in end.text


def test_short_tasks_do_not_wait_behind_long_ones(make_world, tmp_path):
    world = make_world(workers_per_node=2)
    world.ends([world.submit(double, n) for n in range(300)])  # short: several are sent ahead
    gate, started = str(tmp_path / "gate"), str(tmp_path / "started")
    ids = [world.submit(double, n) for n in range(30)]
    long = world.submit(wait_for, gate, started)
    ids += [world.submit(double, n) for n in range(200)]
    world.ends(ids)
    assert not world.has_ended(long)
    (tmp_path / "gate").touch()
    assert world.end(long).value is None


def test_the_status_counts_workers_and_tasks(make_world, tmp_path):
    world = make_world(workers_per_node=1)
    gate, started = tmp_path / "gate", tmp_path / "started"
    ids = [world.submit(wait_for, str(gate), str(started)) for _ in range(5)]
    until(started.exists)
    until(lambda: world.engine.counters()["outstanding_tasks"] == 5)
    status = world.engine.status()
    assert status["engine_type"] == "FluxEngine"
    assert status["executor"] == world.kind
    assert (status["managers"], status["total_workers"], status["idle_workers"]) == (1, 1, 0)
    assert set(status["resources"]) == {"nodes", "cores", "gpus"}
    if world.kind == "flux":
        # Where Flux does not answer within a second, it is left out.
        usage = until(lambda: world.engine.status()["usage"])
        assert (usage["nodes_down"], usage["gpus_free"], usage["expires"]) == (0, 0, None)
        assert usage["cores_allocated"] > 0
        assert usage["cores_allocated"] + usage["cores_free"] == status["resources"]["cores"]
    gate.touch()
    world.ends(ids)
    until(lambda: world.engine.counters()["outstanding_tasks"] == 0)
    assert world.engine.counters()["idle_workers"] == 1
    assert os.environ.get("GC_TASK_UUID") is None


def test_the_status_names_tasks_that_run_for_a_while_with_their_start_times(make_world, tmp_path):
    world = make_world(workers_per_node=1)
    gate, started = tmp_path / "gate", tmp_path / "started"
    before = time.time()
    running, waiting = (world.submit(wait_for, str(gate), str(started)) for _ in range(2))
    until(lambda: world.engine.counters()["running_tasks"])
    until(started.exists)  # its worker, which has it for a second, may not have come to it yet
    told = world.engine.counters()["running_tasks"]
    assert list(told) == [running]
    assert before - 0.01 <= told[running] <= started.stat().st_mtime + 1
    gate.touch()
    world.ends([running, waiting])
    assert world.engine.counters()["running_tasks"] == {}


def test_the_status_does_not_name_ended_or_lost_tasks_as_running(make_world, tmp_path):
    world = make_world(workers_per_node=2)
    gate, started = str(tmp_path / "gate"), str(tmp_path / "started")
    ended = world.submit(wait_for, gate, started)
    killed = world.submit(killed_later, gate)
    until(lambda: len(world.engine.counters()["running_tasks"]) == 2)
    world.engine.cancel(ended)
    until(lambda: len(world.engine.counters()["running_tasks"]) == 1)
    (tmp_path / "gate").touch()
    world.ends([ended, killed])
    assert world.engine.counters()["running_tasks"] == {}
