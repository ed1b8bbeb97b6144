"""What precedes the program of a job: variables, snippets, and another Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine_world import World
from pydantic import ValidationError

import flux_endpoint
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.job_setup import JobSetup
from flux_endpoint.engine.jobspec import JobRequest
from flux_endpoint.extras import install_command
from flux_endpoint.functions import ShellFunction
from flux_endpoint.protocol.resources import ResourceSpecification


def run(setup: JobSetup, *command: str, **resources: str) -> subprocess.CompletedProcess[str]:
    """What the job's program does on a node."""
    request = JobRequest(
        command=command,
        cwd="/",
        environment=setup.environment(),
        resources=ResourceSpecification(**resources),
    )
    prepared = setup.prepare(request)
    return subprocess.run(
        prepared.command,
        env=dict(prepared.environment),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_job_without_snippets_is_unchanged():
    request = JobRequest(command=["app"], cwd="/", environment={"A": "1"})
    assert JobSetup().prepare(request) is request


def test_the_engines_snippet_runs_before_the_tasks_and_both_before_the_program():
    setup = JobSetup({"A": "of the engine"}, 'B="after $A"\nexport B')
    ran = run(setup, "sh", "-c", 'echo "$C"; env', worker_init='export C="$B, then mine"')
    assert ran.stdout.startswith("after of the engine, then mine\n")
    assert "FLUX_ENDPOINT_WORKER_INIT" not in ran.stdout
    assert "FLUX_ENDPOINT_TASK_INIT" not in ran.stdout


def test_a_snippet_is_no_part_of_the_command_where_flux_would_expand_its_templates():
    setup = JobSetup(snippet="X='{{id}}'")
    prepared = setup.prepare(JobRequest(command=["app"], cwd="/", environment={}))
    assert not any("{{" in word for word in prepared.command)


@pytest.mark.parametrize(
    ("snippet", "status", "culprit"),
    [
        ("false\necho on", 1, "1: false"),
        ("no-such-module-command load gcc", 127, "127: no-such-module-command load gcc"),
        ("load() { test -e /no/$1; }\nload gcc", 1, "1: test -e /no/$1"),
        ("exit 0", 1, "0"),
        ("exit 7", 7, "7"),
    ],
)
@pytest.mark.parametrize("whose", ["engine", "task"])
def test_nothing_starts_after_a_snippet_that_failed(snippet, status, culprit, whose):
    setup = JobSetup(snippet=snippet if whose == "engine" else "")
    ran = run(setup, "echo", "started", worker_init=snippet if whose == "task" else "")
    assert ran.returncode == status
    assert "started" not in ran.stdout
    option = "engine.worker_init" if whose == "engine" else "worker_init of the resource_spec"
    assert f"flux-endpoint: {option}" in ran.stderr
    assert f"with exit status {culprit}\n" in ran.stderr


def test_variables_are_added_replaced_and_unset(monkeypatch):
    monkeypatch.setenv("HERE", "1")
    monkeypatch.setenv("THERE", "1")
    config = FluxEngineConfig(environment={"HERE": None, "THERE": "2", "OMP_NUM_THREADS": 4})
    made = JobSetup.of(config).environment()
    assert "HERE" not in made
    assert (made["THERE"], made["OMP_NUM_THREADS"]) == ("2", "4")


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_what_can_be_no_variable_is_refused(name):
    with pytest.raises(ValidationError, match="can't be a variable"):
        FluxEngineConfig(environment={name: "1"})


def python_without_packages(tmp_path: Path) -> str:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    program.chmod(0o700)
    return str(program)


def test_another_python_is_checked_then_runs_the_module(tmp_path):
    words = ("-m", "flux_endpoint.engine.no_such_module")
    ran = run(JobSetup(), *JobSetup(python=sys.executable).python_command(*words))
    assert "No module named flux_endpoint.engine.no_such_module" in ran.stderr  # it got that far
    other = python_without_packages(tmp_path)
    ran = run(JobSetup(), *JobSetup(python=other).python_command(*words))
    assert ran.returncode == 1
    assert "engine.python: " in ran.stderr
    assert "it can't import dill" in ran.stderr
    assert f". In its environment: {install_command()}" in ran.stderr
    ran = run(JobSetup(), *JobSetup().python_command(*words, python=other))
    assert "python of the resource_specification: " in ran.stderr


def test_another_python_needs_the_same_version(monkeypatch):
    monkeypatch.setattr(flux_endpoint, "__version__", "99")
    ran = run(JobSetup(), *JobSetup(python=sys.executable).python_command("-V"))
    assert "and the endpoint 99. In its environment: pip install " in ran.stderr


def variables():
    import os

    return os.environ.get("GREETING"), os.environ.get("NUMBER")


@pytest.fixture
def world(tmp_path, request):
    world = World("local", tmp_path, local_cores_per_node=2, **request.param)
    yield world
    world.stop()


@pytest.mark.parametrize(
    "world",
    [
        {
            "worker_init": "export GREETING=hello",
            "environment": {"NUMBER": 4},
            "python": sys.executable,
        }
    ],
    indirect=True,
)
def test_functions_and_jobs_run_after_the_snippet_in_the_environment(world):
    mine = {"num_ranks": 1, "worker_init": "export GREETING=$GREETING!"}
    echo, true = ShellFunction("echo $GREETING $NUMBER"), ShellFunction("true")
    tasks = [
        world.submit(variables),
        world.submit(variables, spec=mine),
        world.submit(echo, spec={"num_ranks": 1}),
        world.submit(true, spec={"python": "python3"}),
    ]
    function, ranks, command, refused = world.ends(tasks)
    assert function.value == ("hello", "4")
    assert ranks.value == [("hello!", "4")]
    assert command.value.stdout == "hello 4\n"
    assert "python is for Python functions" in refused.text


@pytest.mark.parametrize("world", [{"worker_init": "echo no gcc here >&2; false"}], indirect=True)
def test_tasks_fail_with_what_the_snippet_said(world):
    end = world.call(variables)
    assert "no workers could be started" in end.text
    assert "no gcc here" in end.text
    assert "engine.worker_init failed" in end.text
