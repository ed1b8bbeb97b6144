"""Tasks that wait for tasks, over a whole stack."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from flux_endpoint import DependencyFailed, Executor, ShellFunction

pytestmark = [pytest.mark.stack, pytest.mark.rabbitmq]

PATIENCE = 100
WIDTH, LEVELS = 50, 20

#: As in a script: its functions travel by value.
SESSION = {"__name__": "__main__"}
exec(
    """
def add(a, b=0):
    return a + b

def total(values, more=None):
    return sum(values) + sum((more or {}).get("more", []))

def fail():
    raise ValueError("on purpose")
""",
    SESSION,
)
add, total, fail = SESSION["add"], SESSION["total"], SESSION["fail"]

SCRIPT = f"""
import os, signal
from flux_endpoint import Executor

def add(a, b=0):
    return a + b

executor = Executor(endpoint_id="local")
level = [executor.submit(add, each) for each in range({WIDTH})]
for _ in range({LEVELS} - 1):
    level = [executor.submit(add, each, 1) for each in level]
for each in level:
    each.wait_submitted()
print(executor.task_group_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def executor(home):
    with Executor(endpoint_id=home.endpoint_id) as executor:
        yield executor


def test_results_are_arguments_wherever_they_stand(executor):
    first = executor.submit(add, 1, 2)
    many = [executor.submit(add, each) for each in range(100)]
    last = executor.submit(
        total, many, more={"more": [first, executor.submit(add, first, b=first)]}
    )
    assert last.result(PATIENCE) == sum(range(100)) + 3 + 6


def test_a_job_takes_the_result_of_a_function_and_the_other_way_round(executor):
    number = executor.submit(add, 40, 2)
    executor.resource_specification = {"num_nodes": 1}
    job = executor.submit(ShellFunction("echo {number}"), number=number)
    executor.resource_specification = None
    assert executor.submit(getattr, job, "stdout").result(PATIENCE) == "42\n"


def test_after_waits_without_taking_the_result(executor, tmp_path):
    mark = tmp_path / "mark"
    slow = executor.submit(ShellFunction("sleep 0.5; touch {mark}"), mark=str(mark))
    assert executor.submit(Path.exists, mark, after=[slow]).result(PATIENCE)


def test_a_failure_names_the_task_that_failed(executor):
    failed = executor.submit(fail)
    next_one = executor.submit(add, failed, 1)
    last = executor.submit(add, next_one, 1)
    with pytest.raises(DependencyFailed, match="ValueError: on purpose") as caught:
        next_one.result(PATIENCE)
    assert caught.value.task_id == failed.task_id
    with pytest.raises(DependencyFailed) as caught:
        last.result(PATIENCE)
    assert caught.value.task_id == next_one.task_id


def test_a_chain_goes_on_when_its_client_is_killed(home, executor):
    client = home.python("-c", SCRIPT)
    assert client.returncode == -signal.SIGKILL, client.stderr
    futures = executor.reload_tasks(client.stdout.strip())
    assert len(futures) == WIDTH * LEVELS
    deadline = time.monotonic() + PATIENCE
    results = [each.result(deadline - time.monotonic()) for each in futures]
    assert sum(results) == LEVELS * sum(range(WIDTH)) + WIDTH * sum(range(LEVELS))
