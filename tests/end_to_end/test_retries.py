"""Tasks with several attempts, over a whole stack."""

from __future__ import annotations

import pytest

from flux_endpoint import Executor, ShellFunction, TaskCancelled, TaskExecutionFailed
from flux_endpoint.cli.service_api import OperatorApi
from waiting import until

pytestmark = [pytest.mark.stack, pytest.mark.rabbitmq]

PATIENCE = 100

#: As in a script: its functions travel by value.
SESSION = {"__name__": "__main__"}
exec(
    """
import os

class Flaky(ConnectionError):
    pass

def fails(marks, times):
    done = len(os.listdir(marks))
    open(f"{marks}/{done}", "w").close()
    if done < times:
        raise Flaky(f"number {done + 1}")
    return done

def prints(marks):
    import time
    number = 1 + os.path.exists(f"{marks}/failed")
    print(f"{number} begins")
    while not os.path.exists(f"{marks}/{number}"):
        time.sleep(0.01)
    print(f"{number} ends")
    if number == 1:
        open(f"{marks}/failed", "w").close()
        raise Flaky

def dies(marks):
    if not os.listdir(marks):
        open(f"{marks}/once", "w").close()
        os.kill(os.getpid(), 9)
    return os.environ["GC_TASK_UUID"]
""",
    SESSION,
)
fails, prints, dies = SESSION["fails"], SESSION["prints"], SESSION["dies"]
COMMAND = ShellFunction("echo >> {marks}/n; test $(wc -l < {marks}/n) -ge 3 || exit 75")


@pytest.fixture
def executor(home):
    with Executor(endpoint_id=home.endpoint_id) as executor:
        yield executor


def record(future):
    return OperatorApi().task(future.task_id)


def test_a_function_runs_until_it_succeeds(home, executor, tmp_path):
    patient = executor.using(retries=3, retry_on="ConnectionError", retry_delay=0)
    future = patient.submit(fails, str(tmp_path), 2)
    after = executor.submit(pow, future, 2)
    assert after.result(PATIENCE) == 4  # a failed attempt fails nobody
    found = record(future)
    assert found.attempts == 3
    assert found.failed_attempts == ["Flaky: number 1", "Flaky: number 2"]
    assert found.run_options["retries"] == 3
    shown = home.command("task", future.task_id)
    assert "attempt 2: Flaky: number 2" in shown.stdout


def test_a_held_task_waits_until_it_is_released(home, executor):
    held = executor.using(hold=True, retries=1).submit(pow, 2, 10)
    after = executor.submit(pow, held, 2)
    assert after.hold()  # it waits at the service, and at its endpoint when its input is there
    assert executor.submit(pow, 3, 2).result(PATIENCE) == 9
    assert not held.done()
    assert held.release()
    assert held.result(PATIENCE) == 1024
    assert not after.done()
    shown = home.command("urgency", after.task_id, held.task_id, "default").stdout
    assert shown.count(" sent") == shown.count(" ended before") == 1
    assert after.result(PATIENCE) == 1024**2


def test_the_error_names_each_attempt(executor, tmp_path):
    with pytest.raises(TaskExecutionFailed) as caught:
        executor.using(retries=1, retry_delay=0).submit(fails, str(tmp_path), 9).result(PATIENCE)
    assert "attempt 1: Flaky: number 1" in str(caught.value)
    assert "Flaky: number 2" in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_failure_is_the_last_one(executor, tmp_path):
    picky = executor.using(retries=3, retry_on=[KeyError, 75, "lost"], retry_delay=0)
    with pytest.raises(TaskExecutionFailed, match="number 1"):
        picky.submit(fails, str(tmp_path), 9).result(PATIENCE)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("resources", [{}, {"num_nodes": 1}], ids=["worker", "job"])
def test_a_command_runs_again_for_its_exit_code(executor, tmp_path, resources):
    patient = executor.using(retries=5, retry_on=75, retry_delay=0, **resources)
    future = patient.submit(COMMAND, marks=str(tmp_path))
    assert future.result(PATIENCE).returncode == 0
    found = record(future)
    assert (found.attempts, found.returncode) == (3, 0)
    assert found.failed_attempts == ["exit code 75"] * 2
    # Events travel apart from results.
    until(lambda: [e.name for e in record(future).events].count("attempt-failed") == 2, PATIENCE)


def test_the_output_of_each_attempt_is_followed(executor, tmp_path):
    assert executor.submit(pow, 2, 2).result(PATIENCE) == 4  # workers are there
    future = executor.using(retries=3, retry_delay=0).submit(prints, str(tmp_path))
    seen = []
    for line in future.output():
        seen.append(line)
        if line.endswith(" begins\n"):
            assert not future.done()
            (tmp_path / line[0]).touch()
    assert future.exception() is None
    begins = "[... attempt 2 begins ...]\n"
    assert seen == ["1 begins\n", "1 ends\n", begins, "2 begins\n", "2 ends\n"]


def test_a_lost_worker(executor, tmp_path):
    patient = executor.using(retries=1, retry_on="lost", retry_delay=0)
    future = patient.submit(dies, str(tmp_path))
    assert future.result(PATIENCE) == f"{future.task_id}.2"
    assert "WorkerLost" in record(future).failed_attempts[0]


def test_a_kill_ends_the_pause_between_two_attempts(executor, tmp_path):
    future = executor.using(retries=3, retry_delay="1h").submit(fails, str(tmp_path), 9)
    assert future.wait_submitted(PATIENCE)
    until(lambda: record(future).events, PATIENCE)
    future.kill()
    with pytest.raises(TaskCancelled, match=r"after 1 failed attempt, the last: .*number 1"):
        future.result(PATIENCE)


def test_a_kill_makes_the_running_attempt_the_last_one(executor, tmp_path):
    mark = tmp_path / "begun"
    command = ShellFunction(f"trap 'exit 3' TERM; touch {mark}; sleep 1000 & wait")
    future = executor.using(retries=3, retry_delay=0).submit(command)
    until(mark.exists, PATIENCE)
    mark.unlink()
    future.kill()
    with pytest.raises(TaskCancelled):
        future.result(PATIENCE)
    assert not mark.exists()
