"""Which job a task becomes; nothing runs here."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from engine_world import buffer_of

from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.jobs.command import simple_words
from flux_endpoint.engine.jobs.plan import CommandPlan, FollowPlan, Planner, RanksPlan
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.errors import DeserializationError, EngineError
from flux_endpoint.functions import (
    MPIFunction,
    OfficialShellResult,
    ShellFunction,
    official_code,
)
from flux_endpoint.protocol.resources import ResourceSpecificationError
from flux_endpoint.serialize import pack_buffers, unpack_buffers

FOUR = {"num_nodes": 2, "ranks_per_node": 2}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("app", ["app"]),
        ("  app -i 3 --in file.h5  ", ["app", "-i", "3", "--in", "file.h5"]),
        ("app 'two words' \"and two\"", ["app", "two words", "and two"]),
        ("app 'a|b; $x' \"it's\"", ["app", "a|b; $x", "it's"]),
        ("/opt/app,v2/run-1.0@x:y +z", ["/opt/app,v2/run-1.0@x:y", "+z"]),
        ("app ''", ["app", ""]),
        ("app --x=1 y=2", ["app", "--x=1", "y=2"]),
        ("./a=b --x", ["./a=b", "--x"]),
        ("", None),
        ("   \n ", None),
        ("true; app", None),
        ("a && b", None),
        ("a | b", None),
        ("a > file", None),
        ("a &", None),
        ("echo $HOME", None),
        ('echo "$HOME"', None),
        ("echo `date`", None),
        ("echo *.h5", None),
        ("echo ~", None),
        ("echo {a,b}", None),
        ("echo \\;", None),
        ("X=1 app", None),
        ("_x9+=1 app", None),
        ("a\nb", None),
        ("app # comment", None),
        ("! app", None),
        ("echo 'open", None),
        ("(app)", None),
    ],
)
def test_simple_commands_are_distinguished_from_scripts(command, words):
    assert simple_words(command) == words


def planner(kind="flux", tmp_path=Path("/e"), **options):
    settings = {
        "endpoint_id": "e",
        "working_dir": str(tmp_path / "work"),
        "run_in_sandbox": False,
        "allowed_serializers": None,
        **options,
    }
    return Planner(kind, tmp_path / "jobs", TaskSettings(**settings))


def task(function, spec, **kwargs):
    return EngineTask(str(uuid.UUID(int=5)), "f", buffer_of(function, **kwargs), spec)


def double(x=1):
    return 2 * x


def command_plan(function, spec, kind="flux", **kwargs) -> CommandPlan:
    plan = planner(kind).plan(task(function, spec, **kwargs))
    assert isinstance(plan, CommandPlan)
    return plan


def test_a_simple_mpi_command_is_the_jobs_command():
    plan = command_plan(MPIFunction("app --in {f}"), FOUR, f="x.h5")
    assert plan.request.command == ["app", "--in", "x.h5"]
    assert plan.request.launch == "rank"
    assert plan.request.shell_options == {"exit-timeout": "none", "exit-on-error": 1}
    assert plan.command == "$PARSL_MPI_PREFIX app --in x.h5"


def test_a_script_gets_an_instance_of_its_own():
    plan = command_plan(MPIFunction("true;\n$PARSL_MPI_PREFIX app"), FOUR)
    assert plan.request.command == ("flux", "broker")
    assert plan.request.launch == "node"
    assert plan.request.script is not None
    assert plan.request.script.endswith("; $PARSL_MPI_PREFIX true;\n$PARSL_MPI_PREFIX app\n")
    assert plan.request.files.keys() == {"launch"}
    assert plan.request.environment["PARSL_MPI_PREFIX"] == "flux run -n 4 -N 2 -c 1"


def test_the_prefix_has_cores_gpus_and_the_users_options():
    spec = {"num_ranks": 2, "cores_per_rank": 3, "gpus_per_rank": 1, "launcher_options": "-o x"}
    prefix = command_plan(ShellFunction("a"), spec).request.environment["PARSL_MPI_PREFIX"]
    assert prefix == "flux run -n 2 -c 3 -g 1 -o x"


def test_ranks_that_share_slots_are_launched_by_their_number_on_each_node():
    spec = {"num_nodes": 2, "ranks_per_node": 4, "tasks_per_slot": 2, "gpus_per_rank": 1}
    prefix = command_plan(ShellFunction("a"), spec).request.environment["PARSL_MPI_PREFIX"]
    assert prefix == "flux run -N 2 --tasks-per-node=4 --gpus-per-node=2"


def test_a_shell_function_of_one_rank_is_a_plain_job():
    plan = command_plan(ShellFunction("echo {x} | cat"), {"num_ranks": 1}, x=1)
    assert plan.request.command == ("/bin/bash", "-c", "echo 1 | cat")
    assert plan.request.environment["PARSL_MPI_PREFIX"] == ""
    assert plan.command == "echo 1 | cat"


@pytest.mark.parametrize("kind", ["flux", "local"])
def test_a_command_that_is_too_long_for_an_argument_is_a_script(kind):
    command = ": " + "é" * (1 << 16)
    plan = command_plan(ShellFunction(command), {"num_ranks": 1}, kind=kind)
    assert plan.request.command == ("/bin/bash",)
    assert plan.request.script == command


def test_on_the_embedded_executor_the_ranks_are_tasks_too_where_mpich_is_the_launcher():
    plan = command_plan(MPIFunction("app -x"), FOUR, kind="local")
    assert (plan.request.command, plan.request.launch) == (["app", "-x"], "rank")
    assert "mpiexec -n 4 " in plan.request.environment["PARSL_MPI_PREFIX"]
    ranks = planner("local").plan(task(double, FOUR))
    assert isinstance(ranks, RanksPlan)
    assert (ranks.request.command[0], ranks.request.launch) == (sys.executable, "rank")


@pytest.mark.parametrize(
    "spec", [{"num_ranks": 4, "launcher_options": "-l"}, {"num_ranks": 257}], ids=str
)
def test_on_the_embedded_executor_mpiexec_starts_other_ranks(spec):
    plan = command_plan(MPIFunction("app"), spec, kind="local")
    assert plan.request.command == ("/bin/bash", "-c", "$PARSL_MPI_PREFIX app")
    assert plan.request.launch == "once"


def test_mpiexec_survives_ranks_that_end_before_its_last_message(monkeypatch, tmp_path):
    # It would lose what they have written; no test can bring that moment about.
    mpiexec = tmp_path / "mpiexec"
    mpiexec.write_text("#!/bin/sh\necho ranks: $@\nkill -PIPE $$\necho alive\n")
    mpiexec.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    plan = command_plan(MPIFunction("app 1"), FOUR, kind="local")
    done = subprocess.run(
        plan.request.command,
        env={"PATH": os.environ["PATH"], **plan.request.environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("ranks: -n 4 ")
    assert done.stdout.endswith(" app 1\nalive\n")


def test_without_mpiexec_only_tasks_that_need_it_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for function in (MPIFunction("app"), double):
        with pytest.raises(EngineError, match="pip install mpich"):
            planner("local").plan(task(function, {"num_ranks": 2}))
    assert command_plan(ShellFunction("a"), {"num_ranks": 1}, kind="local")
    assert isinstance(planner("local").plan(task(double, {"num_ranks": 1})), RanksPlan)


def test_a_function_runs_on_every_rank_from_a_directory_of_its_task():
    plan = planner().plan(task(double, FOUR))
    assert isinstance(plan, RanksPlan)
    assert plan.ranks == 4
    assert plan.directory == Path("/e/jobs") / str(uuid.UUID(int=5))
    assert plan.request.command[-1] == str(plan.directory)
    assert plan.request.shell_options == {"exit-timeout": "none", "exit-on-error": 1}


def test_an_attach_is_a_plan_to_follow():
    task = EngineTask("t", "f", "", attach=77)
    assert planner().plan(task) == FollowPlan(77)


@pytest.mark.parametrize(
    ("function", "given", "walltime"),
    [
        (None, None, 0.0),
        (5, None, 5.0),
        (None, "10s", 10.0),
        (5, 10, 5.0),
        (20, 10, 10.0),
        (float("inf"), 10, 10.0),
        (float("inf"), None, 0.0),
        (0, None, 0.01),
    ],
)
def test_the_shorter_walltime_counts(function, given, walltime):
    plan = command_plan(ShellFunction("a", walltime=function), {"num_ranks": 1, "walltime": given})
    assert plan.request.resources.walltime == walltime


def test_output_goes_to_the_files_named_or_one_of_the_task():
    plan = command_plan(ShellFunction("a", stdout="out", stderr="/abs/err"), {"num_ranks": 1})
    assert (plan.stdout, plan.stderr) == (Path("/e/work/out"), Path("/abs/err"))
    assert (plan.request.stdout, plan.request.append) == ("/e/work/out", True)
    plan = command_plan(ShellFunction("a"), {"num_ranks": 1})
    assert plan.stdout == Path("/e/work") / f"{uuid.UUID(int=5)}.stdout"
    plan = command_plan(ShellFunction("a", stdout="{{id}}"), {"num_ranks": 1})
    assert plan.stdout == Path("/e/work/{{id}}")
    assert plan.request.stdout == f"/e/jobs/{uuid.UUID(int=5)}/stdout"


def test_a_job_is_named_after_the_function_unless_it_has_a_name():
    assert command_plan(ShellFunction("a", name="mine"), {}).request.resources.job_name == "mine"
    plan = command_plan(ShellFunction("a", name="mine"), {"job_name": "yours"})
    assert plan.request.resources.job_name == "yours"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("app --in x", "app"),
        ("  /opt/app-1.0/bin/app++ | tee x", "app++"),
        ("./run.sh;\nexit", "run.sh"),
        ("X=1 Y=2 app", "app"),
        ("$PARSL_MPI_PREFIX app", "MPIFunction"),
        ("(a; b)", "MPIFunction"),
        ("'my app' x", "MPIFunction"),
        ("", "MPIFunction"),
    ],
)
def test_a_command_without_a_name_is_named_after_its_program(command, name):
    assert command_plan(MPIFunction(command), FOUR).request.resources.job_name == name


def test_tasks_know_their_ranks_their_id_and_their_sandbox():
    plan = planner(run_in_sandbox=True).plan(task(MPIFunction("a"), FOUR))
    assert isinstance(plan, CommandPlan)
    own = f"/e/work/{uuid.UUID(int=5)}"
    expected = {
        "GC_TASK_UUID": str(uuid.UUID(int=5)),
        "GC_TASK_SANDBOX_DIR": own,
        "PARSL_NUM_RANKS": "4",
        "PARSL_NUM_NODES": "2",
        "PARSL_RANKS_PER_NODE": "2",
    }
    assert expected.items() <= plan.request.environment.items()
    assert plan.request.cwd == own


def test_a_task_that_can_not_be_planned_is_refused_with_the_reason():
    with pytest.raises(ResourceSpecificationError, match="'num_nodes'"):
        planner().plan(task(MPIFunction("a"), {"num_node": 1}))
    with pytest.raises(TypeError, match="missing"):
        planner().plan(task(MPIFunction("a {missing}"), FOUR))
    allowed = ["globus_compute_sdk.serialize.DillCode", "globus_compute_sdk.serialize.JSONData"]
    with pytest.raises(DeserializationError, match="CommandFunctionCode"):
        planner(allowed_serializers=allowed).plan(task(MPIFunction("a"), FOUR))


@pytest.mark.parametrize("kind", ["flux", "local"])
def test_an_official_command_function_becomes_the_same_job_as_ours(kind):
    ours = task(MPIFunction("a {x}", name="say", walltime=5, stdout="o"), FOUR, x=1)
    _, args, kwargs = unpack_buffers(ours.buffer)
    code = official_code(MPIFunction("a {x}", name="say", walltime=5, stdout="o"))
    theirs = replace(ours, buffer=pack_buffers([code, args, kwargs]))
    planned, expected = planner(kind).plan(theirs), planner(kind).plan(ours)
    assert isinstance(planned, CommandPlan)
    assert replace(planned, function=expected.function) == expected
    assert planned.function.result_type is OfficialShellResult


def test_reading_an_official_command_function_respects_the_allow_list():
    code = official_code(MPIFunction("a"))
    ours = task(MPIFunction("a"), FOUR)
    theirs = replace(ours, buffer=pack_buffers([code, *unpack_buffers(ours.buffer)[1:]]))
    names = ("CombinedCode", "JSONData", "DillDataBase64")
    allowed = [f"globus_compute_sdk.serialize.{name}" for name in names]
    with pytest.raises(DeserializationError, match="DillCode disabled"):
        planner(allowed_serializers=allowed).plan(theirs)
