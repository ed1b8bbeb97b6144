"""Every script of the guides, run as a user would, against a live stack."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flux_endpoint import Client

pytestmark = pytest.mark.rabbitmq

EXAMPLES = Path(__file__).parents[2] / "examples"
LAST_COLLATZ = "[100, 50, 25, 76, 38, 19, 58, 29, 88, 44, 22, 11, 34, 17, 52, 26, 13, 40, 20, 10"

BOTH = pytest.mark.parametrize("prefix", ["", "funcx/funcx"])


@BOTH
def test_the_basic_example_runs_a_function(stack, prefix):
    assert stack.printed(f"{prefix}executor_basic_example.py") == "14\n"


def test_the_example_of_dependencies(stack):
    printed = stack.printed("dependencies.py")
    assert printed == "mean 4.5\ncleaned up\nValueError: no data\n"


@BOTH
def test_the_example_of_many_tasks(stack, prefix):
    printed = stack.printed(f"{prefix}executor_collatz.py")
    assert "Tasks all submitted; waiting for results\n" in printed
    assert "All sequences generated (from 1 to 100)\n[1]\n[2, 1]\n" in printed
    assert LAST_COLLATZ in printed.splitlines()[-1]
    assert "disproving" not in printed


@BOTH
def test_the_status_without_waiting(stack, prefix):
    printed = stack.printed(f"{prefix}executor_status.py")
    assert re.fullmatch(r"Status:  (True|False)\nStatus at the end:  True\n", printed)


@BOTH
def test_the_example_of_an_exception(stack, prefix):
    printed = stack.printed(f"{prefix}executor_handle_result_exceptions.py")
    assert printed.startswith("Oh no!  The task raised an exception: ")
    assert "ValueError: Sequence not terminated in 100 steps" in printed


@BOTH
def test_results_as_they_arrive(stack, prefix):
    lines = stack.printed(f"{prefix}executor_results_as_arrived.py").splitlines()
    assert lines[0] == "Results: " + str([f"{n} -> {2 * n}" for n in range(10)])
    assert sorted(lines[1:]) == [f"Received: {n} -> {2 * n}" for n in range(10, 20)]


@BOTH
def test_tasks_are_reloaded_after_a_sigkill(stack, prefix):
    script = f"{prefix}executor_reload_tasks.py"
    killed = stack.run(script)
    assert killed.returncode == -signal.SIGKILL
    assert "Simulating unexpected process death!" in killed.stdout
    group = killed.stdout.split()[-1]
    printed = stack.printed(script, group)
    assert f"Reloading tasks from Task Group ID: {group}" in printed
    for n in range(1, 6):
        assert f"logic result, from task: {n}\n" in printed


@pytest.mark.parametrize(
    ("submits", "reloads"),
    [
        ("client_submit_batch.py", "executor_reload_batch.py"),
        ("funcx/funcxclient_submit_batch.py", "funcx/funcxexecutor_reload_batch.py"),
    ],
)
def test_a_batch_is_reloaded_by_another_script(stack, submits, reloads):
    group = stack.printed(submits).split()[-1]
    lines = stack.printed(reloads, group).splitlines()
    assert sorted(lines) == [f"Received: All done with {n}!" for n in range(10)]


@pytest.mark.parametrize(
    ("script", "question"),
    [
        ("executor_reload_batch.py", "Which tasks?"),
        ("funcx/funcxexecutor_reload_batch.py", "Which tasks?"),
        ("amqp_port.py", "Which port?"),
    ],
)
def test_a_script_without_its_argument_names_it(stack, script, question):
    done = stack.run(script)
    assert done.returncode == 1
    assert done.stderr.startswith(question)


def test_a_script_without_an_endpoint_asks_for_it(stack, tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FLUX_")}
    environment = {**kept, "FLUX_ENDPOINT_HOME": str(tmp_path)}
    done = replace(stack, environment=environment).run("executor_basic_example.py")
    assert done.returncode == 1
    assert done.stderr == "Which endpoint? Put its id into FLUX_ENDPOINT_ID.\n"
    for script in EXAMPLES.rglob("*.py"):
        assert 'environ["FLUX_ENDPOINT_ID"]' not in script.read_text(), script


def test_shell_functions(stack):
    assert stack.printed("shell_function.py") == "hello\n\nhola\n\nbonjour\n\n"


def test_shell_functions_that_return_a_dictionary(stack):
    results = [
        json.loads(line)
        for line in stack.printed("shell_function_return_dict.py").split("\n")
        if line
    ]
    assert [result["stdout"] for result in results] == ["hello\n", "hola\n", "bonjour\n"]
    assert {"cmd", "returncode", "stderr", "exception_name"} < results[0].keys()


def test_a_walltime(stack):
    assert stack.printed("shell_walltime.py") == "124\n"


@pytest.mark.mpi
def test_an_mpi_command(stack):
    printed = stack.printed("mpi_function.py")
    assert printed.count("hello from a rank") == 2


@pytest.mark.mpi
def test_an_mpi_script(stack):
    lines = stack.printed("mpi_multi_line.py").split("\n")
    assert [line for line in lines if line] == ["first"] * 2 + ["between the two"] + ["second"] * 2


def test_strategies(stack):
    printed = stack.printed("serialization_strategies.py")
    assert printed == "CombinedCode: 42\nPureSourceTextInspect: 42\n"


def test_checking_strategies(stack):
    assert stack.printed("check_strategies.py") == "hello world\n"


def test_result_serializers(stack):
    printed = stack.printed("result_serializers.py")
    assert printed == "JSON: {'0': 0, '1': 1, '2': 4}\ndill: {0: 0, 1: 1, 2: 4}\n"


def test_another_port_of_the_broker(stack):
    url = Client(stack.service_url, stack.token).get_result_amqp_url()["connection_url"]
    port = urlsplit(url).port
    assert stack.printed("amqp_port.py", str(port)) == f"port {port}: 1024\n"


def test_every_script_is_run_by_a_test():
    here = Path(__file__).read_text()
    elsewhere = (EXAMPLES.parent / "tests" / "end_to_end" / "test_jobs.py").read_text()
    for script in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("funcx/*.py")]:
        name = script.name.removeprefix("funcx")
        assert name in here or name in elsewhere or name == "demo.py", script
