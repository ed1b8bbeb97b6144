"""Tasks with a resource specification: jobs of their own, on either executor."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from engine_world import PATIENCE, World, buffer_of, fresh_seconds, processes

from flux_endpoint.endpoint.restrictions import restricted
from flux_endpoint.engine import flux_journal
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.jobs import runner
from flux_endpoint.engine.jobs.runner import JobRunner
from flux_endpoint.errors import EngineError
from flux_endpoint.functions import MPIFunction, ShellFunction, ShellResult
from flux_endpoint.protocol.jobid import format_jobid, parse_jobid
from waiting import until

ONE = {"num_ranks": 1}
FOUR = {"num_nodes": 2, "ranks_per_node": 2}
ON_FLUX = pytest.mark.parametrize(
    "kind", [pytest.param("flux", marks=pytest.mark.flux)], indirect=True
)
ON_LOCAL = pytest.mark.parametrize("kind", ["local"], indirect=True)
FAILED = "subprocess.CalledProcessError"


def ranks():
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return world.rank, world.size, world.allreduce(world.rank)


def fails_on(rank):
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.rank == rank:
        raise ValueError(f"rank {rank} can't")
    world.barrier()


def echo(value):
    return value


def directory():
    import os
    import pathlib

    return (
        str(pathlib.Path.cwd()),
        os.environ["GC_TASK_UUID"],
        os.environ.get("GC_TASK_SANDBOX_DIR"),
    )


def shell(world: World, command: str, spec=ONE, /, **options) -> ShellResult:
    result = world.call(ShellFunction(command, **options), spec=spec).value
    assert isinstance(result, ShellResult)
    return result


# Commands


@pytest.mark.mpi
def test_a_simple_mpi_command_runs_on_every_rank(world: World):
    result = world.call(MPIFunction("printenv PARSL_NUM_RANKS"), spec=FOUR).value
    assert (result.returncode, result.stdout) == (0, "4\n" * 4)
    assert result.cmd == "$PARSL_MPI_PREFIX printenv PARSL_NUM_RANKS"


@pytest.mark.mpi
def test_ranks_know_their_number(world: World):
    result = world.call(MPIFunction("printenv PMI_RANK"), spec=FOUR).value
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split()) == ["0", "1", "2", "3"]


@pytest.mark.mpi
def test_a_broken_pipe_ends_a_rank_as_it_ends_any_program(world: World):
    result = world.call(MPIFunction("grep SigIgn: /proc/self/status"), spec=FOUR).value
    ignored = [int(mask, 16) for mask in result.stdout.split()[1::2]]
    assert len(ignored) == 4
    assert not any(mask & 1 << (signal.SIGPIPE - 1) for mask in ignored)


@pytest.mark.mpi
def test_a_script_runs_once_and_its_prefix_on_every_rank(world: World):
    script = "true;\necho before\n$PARSL_MPI_PREFIX echo rank {x}\nx=$((1 + 1)); echo after $x"
    result = world.call(MPIFunction(script), spec=FOUR, x=7).value
    assert result.stdout.split("\n") == ["before", *["rank 7"] * 4, "after 2", ""]


@pytest.mark.mpi
@pytest.mark.parametrize("command", ["printenv PMI_RANK", "printenv PMI_RANK;"])
def test_ranks_may_share_slots(world: World, command):
    # Directly, and from a script: more ranks than the two nodes' cores would take one by one.
    spec = {"num_nodes": 2, "ranks_per_node": 8, "tasks_per_slot": 8}
    result = world.call(MPIFunction(command), spec=spec).value
    assert sorted(map(int, result.stdout.split())) == list(range(16))


@pytest.mark.mpi
def test_a_scripts_exit_code_is_its_last_lines(world: World):
    function = MPIFunction("false;\n$PARSL_MPI_PREFIX true\nexit 9")
    assert world.call(function, spec={"num_ranks": 2}).value.returncode == 9


@pytest.mark.mpi
def test_a_shell_function_with_several_ranks_runs_once(world: World):
    result = shell(world, "echo once; $PARSL_MPI_PREFIX echo rank", {"num_ranks": 2})
    assert result.stdout == "once\nrank\nrank\n"


def test_a_shell_function_with_one_rank_needs_no_launcher(world: World):
    assert shell(world, "$PARSL_MPI_PREFIX echo here").stdout == "here\n"


def test_standard_output_and_error_are_separate(world: World):
    result = shell(world, "echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.returncode) == ("out\n", "err\n", 0)
    assert result.exception_name is None


def test_standard_input_is_empty(world: World):
    assert shell(world, "cat; echo done").stdout == "done\n"
    assert world.call(MPIFunction("cat"), spec=ONE).value.returncode == 0


#: What Flux's job shell would fill in, and what it would overrun a buffer of its own with.
BRACES = (
    "{{id}}",
    "{{.Names}}",
    "{{ x }}",
    "{{tmpdir}}",
    "{{name}}",
    "{{",
    "{{%s}}" % ("x" * 2000),
)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("script", "spec"),
    [
        (ShellFunction("printf '%s\\n' {words}"), ONE),
        (ShellFunction("$PARSL_MPI_PREFIX printf '%s\\n' {words}"), {"num_ranks": 2}),
        (MPIFunction("printf '%s\\n' {words}"), {"num_ranks": 2}),
        (MPIFunction("printf '%s\\n' {words};"), {"num_ranks": 2}),
        (MPIFunction("true;\n$PARSL_MPI_PREFIX printf '%s\\n' {words}"), {"num_ranks": 2}),
    ],
    ids=["job", "launched", "direct", "script", "prefix"],
)
def test_a_command_sees_its_braces_as_they_were_written(world: World, script, spec):
    words = [*BRACES, "it's", "two words", "back\\slash", ""]
    result = world.call(script, spec=spec, words=shlex.join(words)).value
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(result.stdout.splitlines()) == sorted(words * spec["num_ranks"])


@pytest.mark.mpi
def test_a_variable_sees_its_braces_as_they_were_written(world: World):
    spec = {"num_ranks": 1, "environment": {"MINE": "{{id}}"}}
    assert world.call(MPIFunction("printenv MINE"), spec=spec).value.stdout == "{{id}}\n"


# Ends


@pytest.mark.parametrize("code", [1, 3, 126, 127, 130, 137, 255])
def test_an_exit_code_is_the_return_code(world: World, code):
    result = shell(world, f"exit {code}")
    assert (result.returncode, result.exception_name) == (code, FAILED)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_is_negative_and_named(world: World, signum):
    result = shell(world, f"kill -{int(signum)} $$; sleep 10")
    assert (result.returncode, result.exception_name) == (-signum, FAILED)
    assert signum.name in result.stderr


def test_an_out_of_memory_kill_is_a_signal_with_a_hint(world: World, small_memory):
    hungry = f"exec {sys.executable} -c 'b = bytearray(2**29)'"
    result = shell(world, f"echo $$ > {small_memory}/cgroup.procs && echo in && {hungry}")
    assert (result.returncode, result.stdout) == (-signal.SIGKILL, "in\n")
    assert "out of memory?" in result.stderr
    assert small_memory.oom_kills() == 1  # it was the kernel, and for this reason


@pytest.mark.parametrize("limit", ["function", "specification"])
def test_a_walltime_gives_124_and_no_process_survives(world: World, limit):
    seconds = fresh_seconds()
    if limit == "function":
        task = world.submit(
            ShellFunction(f"sleep {seconds} & sleep {seconds}", walltime=1), spec=ONE
        )
    else:
        task = world.submit(
            ShellFunction(f"sleep {seconds} & sleep {seconds}"), spec={**ONE, "walltime": "1s"}
        )
    result = world.end(task).value
    assert (result.returncode, result.exception_name) == (124, "subprocess.TimeoutExpired")
    until(lambda: not processes(seconds))


@pytest.mark.parametrize("walltime", [0, float("inf")])
def test_the_ends_of_the_walltimes_range(world: World, walltime):
    result = world.call(
        ShellFunction("sleep 1; echo late", walltime=walltime), spec={"num_ranks": 1}
    ).value
    assert result.returncode == (0 if walltime else 124)


def test_a_program_that_is_not_there_gives_127_and_its_name(world: World):
    result = world.call(MPIFunction("no-such-program-here 1"), spec=ONE).value
    assert result.exception_name == FAILED
    assert "no-such-program-here" in result.stderr
    assert result.returncode == 127


@pytest.mark.parametrize("spec", [{"num_nodes": 99}, {"num_ranks": 1, "cores_per_rank": 999}])
def test_a_request_larger_than_the_instance_is_refused_with_the_reason(world: World, spec):
    end = world.call(MPIFunction("true"), spec=spec)
    assert end.code == "EngineRefusedTask"
    assert "unsatisfiable" in end.text
    assert re.search(r"\(in all, there are \d+ nodes? with \d+ cores? and 0 gpus\)$", end.text)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"num_node": 1}, "'num_nodes'"),
        ({"num_ranks": 0}, "num_ranks must be an integer from 1 to 2147483647"),
        ({"num_nodes": 2, "ranks_per_node": 2, "num_ranks": 3}, "leave one of the three out"),
        ({"walltime": "soon"}, "walltime"),
        ({"num_ranks": 10**400}, "num_ranks must be an integer from 1 to 2147483647, got 1000"),
        ({"attributes": {"system.cwd.x.y": 1}}, "attributes['system.cwd.x.y'] can't be set"),
        ({"attributes": {"a." * 10_000: 1}}, "recursion"),
        ({"shell_options": {"output": "x"}}, ""),
    ],
)
def test_a_wrong_specification_is_refused_with_the_rule(world: World, spec, text):
    end = world.call(MPIFunction("true"), spec=spec)
    assert end.code == "EngineRefusedTask"
    assert text in end.text


def test_a_task_of_which_no_job_can_be_made_ends_alone(world: World, monkeypatch):
    def fails(*_: object) -> None:
        raise LookupError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr("flux_endpoint.engine.jobs.plan.parse_resources", fails)
        end = world.call(MPIFunction("true"), spec=ONE)
    assert end.code == "EngineRefusedTask"
    assert "LookupError: a fault of ours" in end.text
    assert world.call(MPIFunction("true"), spec=ONE).code is None


def test_a_missing_format_key_is_named(world: World):
    end = world.call(MPIFunction("echo {there} {missing}"), spec=ONE, there=1)
    assert end.code is not None
    assert "{missing}" in end.text


def test_a_jobspec_rejected_by_fluxs_validation_is_refused(world: World):
    end = world.call(MPIFunction("true"), spec={**ONE, "constraints": {"no-such-operator": [1]}})
    assert end.code == "EngineRefusedTask"
    assert "no-such-operator" in end.text


def _shell_of(jobid_file: Path, world: World) -> psutil.Process:
    """Return the job shell above the process whose id is in the file."""
    process = psutil.Process(int(jobid_file.read_text()))
    above = process.parent()
    assert above is not None
    return above


@pytest.mark.parametrize("retries", [0, 2])
def test_a_killed_job_shell_is_a_lost_job(make_world, tmp_path, retries):
    world = make_world(max_retries_on_system_failure=retries, min_nodes=0)
    count = tmp_path / "count"
    command = f"echo x >> {count}; echo $$ > {tmp_path}/pid-$(wc -l < {count}); exec sleep 100"
    task = world.submit(ShellFunction(command), spec=ONE)
    for attempt in range(1, retries + 2):
        pid = tmp_path / f"pid-{attempt}"
        until(lambda pid=pid: pid.exists() and pid.read_text().strip())
        until(lambda n=attempt: world.event_names(task).count("start") >= n)
        _shell_of(pid, world).kill()
    end = world.end(task)
    assert end.code == "WorkerLost"
    assert "JobLost" in end.text
    assert "job shell was killed by signal 9" in end.text
    if retries:
        assert "3 attempts failed" in end.text
        assert end.message.details["attempts"] == 3


# Output


def test_output_files_are_appended_to_and_only_new_lines_are_returned(world: World, tmp_path):
    out, err = tmp_path / "below" / "out", tmp_path / "err"
    for n in range(2):
        result = shell(world, f"echo run {n}; echo error {n} >&2", stdout=str(out), stderr=str(err))
        assert (result.stdout, result.stderr) == (f"run {n}\n", f"error {n}\n")
    assert out.read_text() == "run 0\nrun 1\n"
    assert err.read_text() == "error 0\nerror 1\n"


def test_relative_output_files_are_in_the_working_directory(world: World):
    shell(world, "echo here", stdout="mine.txt")
    assert (world.directory / "tasks_working_dir" / "mine.txt").read_text() == "here\n"


def test_the_name_of_an_output_file_may_have_braces(world: World):
    result = shell(world, "echo out; echo err >&2", stdout="{{id}}.out", stderr="{{id}}.err")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    work = world.directory / "tasks_working_dir"
    assert (work / "{{id}}.out").read_text() == "out\n"
    assert (work / "{{id}}.err").read_text() == "err\n"


def test_the_last_lines_of_200_mb_are_returned_in_bounded_memory(world: World):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = "x" * 5000  # Flux takes time for each
    result = shell(world, f"yes {line} | head -c 200000000; echo; echo end", snippet_lines=2)
    assert result.stdout.endswith("\nend\n")
    assert len(result.stdout.splitlines()) == 2
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 100 * 1024
    for path in (world.directory / "tasks_working_dir").glob("*.stdout"):
        path.unlink()


def test_return_dict_is_plain_data(world: World):
    json_data = ["globus_compute_sdk.serialize.JSONData"]
    function = ShellFunction("echo hi", return_dict=True)
    end = world.call(function, spec=ONE, serializers=json_data)
    assert end.message.data.startswith("11\n")
    assert end.value == {
        "cmd": "echo hi",
        "stdout": "hi\n",
        "stderr": "",
        "returncode": 0,
        "exception_name": None,
    }


def test_a_working_directory_that_cannot_be_made_is_a_refusal(make_world, tmp_path):
    world = make_world(working_dir="file/below", min_nodes=0)
    (tmp_path / "file" / "below").rmdir()
    (tmp_path / "file").rmdir()
    (tmp_path / "file").touch()
    for function in (ShellFunction("true"), directory):
        end = world.call(function, spec=ONE)
        assert end.code == "EngineRefusedTask"
        assert "file/below" in end.text


def test_a_working_directory_that_cannot_be_made_is_reported_at_the_start(make_world, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"engine\.working_dir: .*file/below can't be created"):
        make_world(working_dir="file/below")


def test_a_damaged_engine_directory_affects_no_other_job(make_world, tmp_path):
    world = make_world(min_nodes=0)
    assert shell(world, "echo 1").stdout == "1\n"
    until(lambda: not list((tmp_path / "engine" / "jobs").iterdir()))
    (tmp_path / "engine" / "jobs").rmdir()
    (tmp_path / "engine" / "jobs").touch()
    assert shell(world, "echo 2").stdout == "2\n"
    assert world.call(echo, 1, spec=ONE).code == "EngineRefusedTask"
    (tmp_path / "engine" / "jobs").unlink()
    assert world.call(echo, 1, spec=ONE).value == [1]


def test_a_sandbox_is_the_jobs_directory(make_world):
    world = make_world(run_in_sandbox=True, min_nodes=0)
    task = world.submit(directory, spec=ONE)
    own = str(world.directory / "tasks_working_dir" / task)
    assert world.end(task).value == [(own, task, own)]
    task = world.submit(
        ShellFunction("pwd; echo $GC_TASK_UUID; echo $GC_TASK_SANDBOX_DIR"), spec=ONE
    )
    own = str(world.directory / "tasks_working_dir" / task)
    assert world.end(task).value.stdout.split() == [own, task, own]


# Python functions


@pytest.mark.mpi
def test_a_function_on_ranks_returns_the_list_of_their_values(world: World):
    assert world.call(ranks, spec=FOUR).value == [(n, 4, 6) for n in range(4)]


def test_a_function_with_one_rank_returns_a_list_of_one(world: World):
    assert world.call(echo, {"a": 1}, spec=ONE).value == [{"a": 1}]


@pytest.mark.mpi
@pytest.mark.parametrize("spec", [None, ONE, {"num_ranks": 2}])
@pytest.mark.parametrize("function", [ShellFunction, MPIFunction])
def test_values_of_chosen_functions_are_quoted_in_every_way_to_run_them(
    world: World, function, spec
):
    value = "a b; id; '$(id)'"
    buffer = buffer_of(function("printf '%s|' {x} \"{x}\""), x=value)
    task = restricted(EngineTask("t", "f", buffer, spec))
    result = world.end(world.submit_buffer(task.buffer, spec)).value
    times = 2 if function is MPIFunction and spec == {"num_ranks": 2} else 1
    assert result.stdout == f"{value}|{value}|" * times


def test_a_module_in_the_working_directory_shadows_no_other(world: World):
    directory = world.directory / "tasks_working_dir"
    for name in ("dill.py", "flux_endpoint.py"):
        (directory / name).write_text("raise SystemExit('somebody else runs here')")
    assert world.call(echo, {"a": 1}, spec=ONE).value == [{"a": 1}]


@pytest.mark.mpi
def test_values_that_the_engine_cannot_unpickle_pass_through(world: World):
    def own_type():
        class Secret:
            value = 5

            def __reduce__(self):
                return eval, ("6 * 7",)

        return Secret()

    assert world.call(own_type, spec={"num_ranks": 2}).value == [42, 42]


@pytest.mark.mpi
def test_a_failing_rank_is_named_while_the_others_wait_for_it(world: World):
    end = world.call(fails_on, 1, spec={"num_nodes": 2, "ranks_per_node": 1})
    assert end.code == "RemoteExecutionError"
    assert "rank 1 of 2" in end.text
    assert "Traceback" in end.text
    assert "ValueError: rank 1 can't" in end.text


def test_a_rank_that_dies_shows_what_it_wrote(world: World):
    def die():
        import os
        import sys

        print("my last words", file=sys.stderr, flush=True)
        os._exit(11)

    end = world.call(die, spec=ONE)
    assert end.code == "RemoteExecutionError"
    assert "return code 11" in end.text
    assert "\nmy last words\n" in end.text
    assert "RuntimeWarning" not in end.text


def test_a_functions_walltime_is_reported(world: World):
    def sleep():
        import time

        time.sleep(100)

    end = world.call(sleep, spec={**ONE, "walltime": 1})
    assert end.code == "RemoteExecutionError"
    assert "walltime ran out" in end.text


def test_values_that_are_too_large_together_are_refused(world: World):
    def large():
        return "x" * 11 * 2**20

    assert world.call(large, spec=ONE).code == "MaxResultSizeExceeded"


# Options


def test_the_specification_adds_and_removes_environment_variables(world: World, monkeypatch):
    monkeypatch.setenv("OF_THE_SITE", "site")
    monkeypatch.setenv("UNWANTED", "x")
    monkeypatch.setenv("FLUX_ENDPOINT_TOKEN", "secret")
    spec = {**ONE, "environment": {"MINE": "a b", "UNWANTED": None}}
    seen = shell(world, "env", spec).stdout.splitlines()
    assert "MINE=a b" in seen
    assert "OF_THE_SITE=site" in seen
    assert not [line for line in seen if line.startswith(("UNWANTED", "FLUX_ENDPOINT_TOKEN"))]


@ON_FLUX
def test_options_reach_flux(world: World):
    spec = {
        "num_nodes": 1,
        "exclusive": True,
        "urgency": 20,
        "job_name": "by-name",
        "walltime": "2m",
        "attributes": {"user.note": "hi", "mine": 3},
        "shell_options": {"verbose": 1},
        "cores_per_rank": 2,
    }
    task = world.submit(ShellFunction("true"), spec=spec)
    jobid = world.event(task, "alloc").jobid
    assert world.end(task).value.returncode == 0
    answer = subprocess.run(
        ["flux", "job", "info", str(jobid), "jobspec"], capture_output=True, text=True, check=True
    )
    jobspec = json.loads(answer.stdout)
    [node] = jobspec["resources"]
    assert (node["type"], node["count"], node["exclusive"]) == ("node", 1, True)
    assert node["with"][0]["with"] == [{"type": "core", "count": 2}]
    attributes = jobspec["attributes"]
    assert attributes["user"]["note"] == "hi"
    assert attributes["user"]["flux_endpoint"]["task"] == task
    assert attributes["system"]["mine"] == 3
    assert attributes["system"]["duration"] == 120
    assert attributes["system"]["job"]["name"] == "by-name"
    assert attributes["system"]["shell"]["options"]["verbose"] == 1
    assert world.event(task, "submit").context["urgency"] == 20


def test_an_unknown_queue_is_refused(world: World):
    end = world.call(ShellFunction("true"), spec={**ONE, "queue": "no-such-queue"})
    assert end.code == "EngineRefusedTask"
    assert "'no-such-queue' is not a valid queue" in end.text


def test_a_job_begins_after_its_begin_time(world: World):
    before = time.time()
    task_id = world.submit(ShellFunction("true"), spec={**ONE, "begin_time": "+1s"})
    assert world.end(task_id).value.returncode == 0
    assert world.event(task_id, "start").timestamp >= before + 0.9  # Flux's own clock of timers


def test_a_job_runs_after_another(world: World):
    first = world.submit(ShellFunction("exit 3"), spec={**ONE, "urgency": 0})
    jobid = format_jobid(world.event(first, "submit").jobid)
    second = world.submit(ShellFunction("true"), spec={**ONE, "dependencies": f"afterany:{jobid}"})
    third = world.submit(ShellFunction("true"), spec={**ONE, "dependencies": f"afterok:{jobid}"})
    world.event(third, "submit")
    world.engine.cancel(first)
    assert world.end(second).value.returncode == 0
    end = world.end(third)
    assert end.code == "EngineRefusedTask"
    assert "never started" in end.text


def test_constraints_may_be_text(world: World):
    spec = {**ONE, "constraints": f"host:{socket.gethostname()} -fast"}
    assert shell(world, "echo here", spec).stdout == "here\n"
    end = world.call(ShellFunction("true"), spec={**ONE, "constraints": "fast"})
    assert "unsatisfiable" in end.text


# Events


def test_events_come_in_fluxs_order(world: World):
    task = world.submit(ShellFunction("true"), spec=ONE)
    world.end(task)
    event = world.event(task, "clean")
    names = [name for name in world.event_names(task) if name != "release"]
    assert names == ["submit", "depend", "priority", "alloc", "start", "finish", "free", "clean"]
    assert isinstance(event.jobid, int)
    assert world.event(task, "finish").context["status"] == 0
    stamps = [event.timestamp for event in world.events if event.task_id == task]
    assert stamps == sorted(stamps)


@pytest.mark.parametrize("command", ["true", "exit 3"])
def test_a_result_names_its_job(world: World, command: str):
    task = world.submit(ShellFunction(command), spec=ONE)
    details = world.end(task).message.details
    assert details is not None
    assert details["flux_jobid"] == str(world.event(task, "submit").jobid)


def spins(seconds):
    import time

    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    return bytearray(64 << 20)[0]


@pytest.mark.parametrize("ranks", [None, 1, 3])
def test_a_result_says_where_a_function_ran_and_what_it_used(world: World, ranks: int | None):
    spec = None if ranks is None else {"num_ranks": ranks}
    details = world.call(spins, 0.1, spec=spec).message.details
    assert details["node"] == socket.gethostname()
    assert details["cpu_time"] >= 0.1 * (ranks or 1)
    assert 64 << 20 < details["max_rss"] < 1 << 30
    assert ("worker" in details, "attempts" in details) == (ranks is None, False)


def test_a_result_says_what_a_command_used_if_its_executor_does(world: World):
    command = f"{sys.executable} -c 'bytearray(64 << 20)'"
    for spec in (None, ONE):
        details = world.call(ShellFunction(command), spec=spec).message.details
        assert details["node"] == socket.gethostname()
        if spec is None or world.kind == "local":
            assert details["max_rss"] > 64 << 20
            assert 0 < details["cpu_time"] < 30
        else:
            assert not {"max_rss", "cpu_time"} & details.keys()  # Flux does not measure


def test_a_result_of_a_worker_names_no_job(world: World):
    details = world.call(echo, 1).message.details
    assert details is None or "flux_jobid" not in details


def test_a_held_job_does_not_take_the_workers_nodes_away(world: World, tmp_path):
    before = until(lambda: world.engine.counters()["managers"])
    gate = tmp_path / "gate"
    # Longer than waiting jobs are waited for, and this one waits for nothing.
    command = f"while [ ! -e {gate} ]; do sleep 0.05; done; sleep 1"
    task = world.submit(ShellFunction(command), spec=ONE)
    world.event(task, "start")
    held = world.submit(ShellFunction("true"), spec={**ONE, "urgency": 0})
    world.event(held, "priority")
    gate.touch()
    world.end(task)
    managers = world.engine.counters()["managers"]
    world.engine.cancel(held)
    assert world.end(held).code == "TaskCancelled"
    assert managers >= before


@pytest.mark.usefixtures("whole")
def test_idle_workers_make_room_for_a_job_that_needs_their_node(make_world):
    world = make_world(max_nodes=3, min_nodes=3)
    until(lambda: world.engine.counters()["managers"] == 3)
    spec = {"num_nodes": 3, "cores_per_rank": 2}
    assert shell(world, "echo there is room", spec).stdout == "there is room\n"
    assert world.call(echo, 1).value == 1


# Following jobs


@ON_FLUX
def test_a_job_submitted_elsewhere_is_followed_to_its_end(world: World):
    script = "echo out; echo err >&2; exit 3"
    answer = subprocess.run(
        ["flux", "submit", "sh", "-c", script], capture_output=True, text=True, check=True
    )
    jobid = parse_jobid(answer.stdout.strip())
    for _ in range(2):  # also when it has ended already
        task = world.attach(jobid)
        result = world.end(task).value
        assert (result.returncode, result.stdout, result.stderr) == (3, "out\n", "err\n")
        assert shlex.split(result.cmd) == ["sh", "-c", script]
        assert world.event(task, "finish").jobid == jobid
        world.event(task, "clean")


def test_following_an_unknown_job_says_so(world: World):
    end = world.end(world.attach(123456789))
    assert end.code == "EngineRefusedTask"
    assert "can't follow job ƒBukQL: job ID does not match any job" in end.text
    assert "flux jobs -a" in end.text


@ON_FLUX
def test_a_restarted_engine_finds_its_job_again(make_world, tmp_path):
    count, gate = tmp_path / "count", tmp_path / "gate"
    waits = f"while [ ! -e {gate} ]; do sleep 0.05; done"
    command = f"echo begun; echo run >> {count}; {waits}; echo finished"
    first = make_world(tmp_path, min_nodes=0)
    task = first.submit(ShellFunction(command), spec=ONE)
    jobid = first.event(task, "start").jobid
    until(count.exists)
    first.stop()
    assert not first.has_ended(task)
    before = {task: (buffer_of(ShellFunction(command)), ONE)}
    second = make_world(tmp_path, min_nodes=0, recovers=before)
    assert second.event(task, "start").jobid == jobid
    second.follow(task, "stdout", "begun\n")
    gate.touch()
    result = second.end(task).value
    assert (result.returncode, result.stdout) == (0, "begun\nfinished\n")
    assert count.read_text() == "run\n"


@ON_FLUX
@pytest.mark.parametrize("ends", [False, True], ids=["", "and ends at once"])
def test_a_job_that_was_just_being_submitted_is_found_again(
    make_world, tmp_path, monkeypatch, ends
):
    begun, stopping = threading.Event(), threading.Event()
    answered, try_to_stop = flux_journal._Follower._answered, JobRunner._try_to_stop

    def answered_late(self, *args):
        begun.set()
        assert stopping.wait(PATIENCE)
        answered(self, *args)

    def stop(self, how):
        stopping.set()
        if ends:
            until(lambda: all(job.future.done() for job in self._jobs.values()))
        return try_to_stop(self, how)

    command = f"echo run >> {tmp_path}/count; echo finished"
    first = make_world(tmp_path, min_nodes=0)
    with monkeypatch.context() as patch:
        patch.setattr(flux_journal._Follower, "_answered", answered_late)
        patch.setattr(JobRunner, "_try_to_stop", stop)
        patch.setattr(runner, "_STOP_TIMEOUT", PATIENCE)
        task = first.submit(ShellFunction(command), spec=ONE)
        assert begun.wait(PATIENCE)
        first.stop()
    world = first
    if not world.has_ended(task):
        before = {task: (buffer_of(ShellFunction(command)), ONE)}
        world = make_world(tmp_path, min_nodes=0, recovers=before)
    assert world.end(task).value.stdout == "finished\n"
    assert (tmp_path / "count").read_text() == "run\n"


@ON_LOCAL
def test_jobs_of_the_embedded_executor_end_with_the_engine(make_world):
    world = make_world(min_nodes=0)
    seconds = fresh_seconds()
    task = world.submit(ShellFunction(f"sleep {seconds}"), spec=ONE)
    until(lambda: processes(seconds))
    world.stop()
    assert not processes(seconds)
    assert not world.has_ended(task)


@ON_LOCAL
def test_without_an_mpi_launcher_the_error_says_how_to_get_one(make_world, monkeypatch, tmp_path):
    python = tmp_path / "python"  # no mpiexec beside it, none on PATH
    python.symlink_to(sys.executable)
    world = make_world(min_nodes=0)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path))
    end = world.call(MPIFunction("true"), spec={"num_ranks": 2})
    assert end.code == "EngineRefusedTask"
    assert "pip install mpich" in end.text
    assert os.environ["PATH"] == str(tmp_path)
