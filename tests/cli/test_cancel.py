"""`flux-endpoint cancel`, as a person and as a program sees it."""

from __future__ import annotations

import json
import uuid

import pytest
from tests.cli.conftest import PATIENCE, WAIT, configure

from flux_endpoint.errors import TaskCancelled

pytestmark = [pytest.mark.rabbitmq, pytest.mark.stack]

#: The second, if it has ended before the service answers.
BEING_ENDED = {"ending", "cancelled"}


def ended(future):
    with pytest.raises(TaskCancelled):
        future.result(PATIENCE)


def outcomes(stack, *arguments, **options):
    told = stack.json("cancel", *arguments, **options)["tasks"]
    return {each["task_id"]: each["outcome"] for each in told}


@pytest.mark.parametrize("resources", [None, {"num_ranks": 1}], ids=["worker", "job"])
def test_a_running_task_is_ended(stack, executor, gate, resources):
    executor.resource_specification = resources
    future = executor.submit(WAIT, gate=str(gate))
    task_id = future.wait_submitted(PATIENCE)
    titles, row = stack.out("cancel", task_id).splitlines()
    assert titles == "TASK                                 OUTCOME"
    assert row in {f"{task_id} {outcome}" for outcome in BEING_ENDED}
    ended(future)


def test_several_tasks_are_ended_and_finished_tasks_stay_unchanged(stack, executor, gate):
    done = executor.submit(abs, -1)
    done.result()
    running = [executor.submit(WAIT, gate=str(gate)) for _ in range(12)]
    ids = [future.wait_submitted(PATIENCE) for future in running]
    told = outcomes(stack, done.task_id, *ids)
    assert list(told) == [done.task_id, *ids]
    assert told.pop(done.task_id) == "ended before"
    assert set(told.values()) <= BEING_ENDED
    for future in running:
        ended(future)
    assert stack.json("tasks", f"--group={executor.task_group_id}", "--state=success")["tasks"]


def test_a_task_may_be_named_by_its_job(stack, executor, gate):
    executor.resource_specification = {"num_ranks": 1}
    future = executor.submit(WAIT, gate=str(gate))
    jobid = future.jobid(PATIENCE)
    done = stack.run("cancel", str(jobid), "ƒ2WXGLe", "--json", status=66)
    ending, failed = json.loads(done.stdout)["tasks"]
    assert (ending["task_id"], ending["outcome"] in BEING_ENDED) == (future.task_id, True)
    assert (failed["task_id"], failed["outcome"]) == ("ƒ2WXGLe", "failed")
    assert "none of your open tasks has that job" in failed["error"]
    ended(future)


def test_all_open_tasks_of_a_group(stack, executor, gate):
    executor.submit(abs, -1).result()
    running = [executor.submit(WAIT, gate=str(gate)) for _ in range(3)]
    ids = {future.wait_submitted(PATIENCE) for future in running}
    assert set(outcomes(stack, f"--group={executor.task_group_id}")) == ids
    for future in running:
        ended(future)
    assert stack.out("cancel", f"--group={executor.task_group_id}") == "No open tasks.\n"


def test_all_of_ones_open_tasks_at_an_endpoint(stack, executor, gate):
    future = executor.submit(WAIT, gate=str(gate))
    assert future.wait_submitted(PATIENCE) in outcomes(stack, "--endpoint=local")
    ended(future)
    stack.run("cancel", "--endpoint=nowhere", status=66)


def test_an_unknown_task_does_not_prevent_cancelling_the_others(stack, executor, gate):
    future = executor.submit(WAIT, gate=str(gate))
    task_id = future.wait_submitted(PATIENCE)
    unknown = str(uuid.uuid4())
    done = stack.run("cancel", unknown, task_id, status=66)
    assert f"{unknown} failed  " in done.stdout
    assert f"task {unknown} is unknown" in done.stdout
    assert any(f"{task_id} {outcome}" in done.stdout for outcome in BEING_ENDED)
    ended(future)


def test_a_task_of_an_offline_endpoint_is_cancelled_at_once(stack):
    configure(stack, "leaver")
    stack.start("leaver")
    stack.stop("leaver")
    with stack.executor("leaver") as executor:
        task_id = executor.submit(abs, 1).wait_submitted(PATIENCE)
        assert outcomes(stack, task_id) == {task_id: "cancelled"}


def test_the_keys_of_the_json_stay(stack, executor):
    future = executor.submit(abs, 1)
    future.result()
    (task,) = stack.json("cancel", future.task_id)["tasks"]
    assert task == {
        "task_id": future.task_id,
        "outcome": "ended before",
        "status": "success",
        "error": None,
    }


def test_without_a_service_each_task_is_reported_as_not_cancelled(bare, free_port):
    away = {
        "FLUX_ENDPOINT_SERVICE_URL": f"http://127.0.0.1:{free_port}",
        "FLUX_ENDPOINT_TOKEN": "token",
    }
    ids = [str(uuid.uuid4()) for _ in range(40)]
    done = bare.run("cancel", *ids, status=69, **away)
    lines = done.stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ids
    assert all("can't reach the service" in line for line in lines)


def test_wrong_arguments_are_refused_by_name(bare):
    assert "name a task, a task group with --group, or an endpoint" in bare.err("cancel", status=64)
    said = bare.err("cancel", "no-task", status=64)
    assert "'no-task' is neither a task's id" in said
    assert "nor a job's, as `flux jobs` does" in said
    assert "no credentials" in bare.err("cancel", str(uuid.uuid4()), status=78)
