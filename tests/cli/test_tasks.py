"""`flux-endpoint tasks`, as a person and as a program sees it."""

from __future__ import annotations

import re
import socket
import uuid

import pytest
from tests.cli.conftest import WAIT, configure

from flux_endpoint import ShellFunction
from flux_endpoint.protocol.jobid import parse_jobid
from waiting import until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.stack]
TITLES = ["TASK", "FUNCTION", "STATE", "AGE", "RUNTIME", "RC", "JOBID"]


def group(executor):
    return f"--group={executor.task_group_id}"


def table(text):
    """The rows of a table as dictionaries; cells are separated by their titles' places."""
    titles, *rows = text.splitlines()
    names = titles.split()
    return [dict(zip(names, row.split(maxsplit=len(names) - 1), strict=False)) for row in rows]


def test_tasks_lists_function_state_age_and_runtime(stack, executor):
    good = executor.submit(abs, -1)
    bad = executor.submit(divmod, 1, 0)
    assert good.result() == 1
    assert bad.exception() is not None
    said = stack.out("tasks", group(executor))
    assert said.splitlines()[0].split() == [*TITLES, "ENDPOINT", "ERROR"]
    by_id = {row["TASK"]: row for row in table(said)}
    assert set(by_id) == {good.task_id, bad.task_id}
    first, second = by_id[good.task_id], by_id[bad.task_id]
    assert (first["FUNCTION"], first["STATE"], first["JOBID"]) == ("abs", "success", "-")
    assert re.fullmatch(r"\d+[sm]", first["AGE"])
    assert re.fullmatch(r"[\d.]+s", first["RUNTIME"])
    assert (first["ENDPOINT"], second["STATE"]) == ("local", "failed")
    assert second["ERROR"].startswith("ZeroDivisionError: ")


def test_an_administrator_sees_the_tasks_of_others(stack, executor):
    mine = executor.submit(abs, -1)
    mine.result()
    admin = stack.user("root", "--scope=admin")
    listed = ("tasks", "--user=local", group(executor))
    (row,) = table(stack.out(*listed, **admin))
    assert (row["TASK"], row["USER"], row["FUNCTION"]) == (mine.task_id, "local", "abs")
    assert row["ENDPOINT"] == "local"
    said = stack.err(*listed, status=66)
    assert "needs a token of the scope 'admin'" in said


def test_the_newest_task_comes_first(stack, executor):
    first = executor.submit(abs, 1)
    first.result()
    second = executor.submit(abs, 2)
    second.result()
    rows = table(stack.out("tasks", "local", group(executor)))
    assert [row["TASK"] for row in rows] == [second.task_id, first.task_id]


@pytest.mark.parametrize("resources", [None, {"num_ranks": 1}])
@pytest.mark.parametrize("return_dict", [False, True])
def test_a_command_shows_its_return_code(stack, executor, resources, return_dict):
    executor.resource_specification = resources
    ended = executor.submit(ShellFunction("exit 3", return_dict=return_dict))
    ended.result(60)
    (row,) = table(stack.out("tasks", group(executor)))
    assert (row["STATE"], row["RC"]) == ("success", "3")
    (task,) = stack.json("tasks", group(executor))["tasks"]
    assert task["returncode"] == 3


def test_a_function_has_no_return_code(stack, executor):
    executor.submit(abs, -1).result()
    assert table(stack.out("tasks", group(executor)))[0]["RC"] == "-"
    assert stack.json("tasks", group(executor))["tasks"][0]["returncode"] is None


def test_a_task_on_a_worker_is_shown_as_running_with_its_duration(stack, executor, gate):
    future = executor.submit(WAIT, gate=str(gate))
    (row,) = until(
        lambda: (
            table(stack.out("tasks", group(executor), "--state=running"))
            if "running" in stack.out("tasks", group(executor))
            else None
        )
    )
    assert row["TASK"] == future.wait_submitted(60)
    assert re.fullmatch(r"[\d.]+[sm]", row["RUNTIME"])
    gate.touch()
    future.result()
    assert table(stack.out("tasks", group(executor)))[0]["STATE"] == "success"


def test_a_job_has_its_id_as_flux_prints_it(stack, executor, gate):
    executor.resource_specification = {"num_ranks": 1}
    future = executor.submit(WAIT, gate=str(gate))
    jobid = future.jobid(60)
    (row,) = until(
        lambda: (
            (rows := table(stack.out("tasks", group(executor))))[0]["STATE"] == "running" and rows
        )
    )
    assert row["JOBID"].startswith("ƒ")
    assert parse_jobid(row["JOBID"]) == jobid
    gate.touch()
    future.result()
    (task,) = stack.json("tasks", group(executor))["tasks"]
    assert (task["jobid"], parse_jobid(task["jobid_f58"])) == (jobid, jobid)
    assert task["runtime"] == pytest.approx(task["stopped"] - task["started"], abs=0.002)


def test_a_job_that_waits_for_resources_is_queued(stack, executor):
    executor.resource_specification = {"num_ranks": 1, "urgency": 0}  # held
    future = executor.submit(ShellFunction("true"))
    future.jobid(60)
    until(lambda: table(stack.out("tasks", group(executor)))[0]["STATE"] == "queued")
    future.kill()
    assert future.exception(60) is not None
    assert table(stack.out("tasks", group(executor)))[0]["STATE"] == "cancelled"


def test_tasks_can_be_chosen_by_state(stack, executor, gate):
    good, bad = executor.submit(abs, 1), executor.submit(divmod, 1, 0)
    good.result()
    bad.exception()
    waiting = executor.submit(WAIT, gate=str(gate))
    waiting.wait_submitted(60)

    def ids(*states):
        options = [f"--state={state}" for state in states]
        found = stack.json("tasks", group(executor), *options)["tasks"]
        return {task["task_id"] for task in found}

    assert ids("success") == {good.task_id}
    assert ids("failed") == {bad.task_id}
    assert ids("ended") == {good.task_id, bad.task_id}
    assert ids("open") == {waiting.task_id}
    assert ids("open", "failed") == {waiting.task_id, bad.task_id}
    gate.touch()
    waiting.result()


def test_a_table_fits_the_terminal_and_shows_the_chosen_columns(stack, executor):
    assert executor.submit(divmod, 1, 0).exception() is not None
    said = stack.shown("tasks", group(executor))
    assert all(len(line) <= 80 for line in said.splitlines())
    assert said.splitlines()[0].split() == ["TASK", "FUNCTION", "STATE", "AGE", "RUNTIME", "ERROR"]
    said = stack.out("tasks", group(executor), "-o", "state,node,cpu,memory,attempts")
    titles, row = said.splitlines()
    assert titles.split() == ["STATE", "NODE", "CPU", "MEMORY", "ATTEMPTS"]
    assert re.fullmatch(rf"failed +{socket.gethostname()} +[\d.]+s +[\d.]+ MiB +1", row)
    wide = stack.shown("tasks", group(executor), "--wide").splitlines()
    assert wide[0].split() == [*TITLES, "ENDPOINT", "ERROR"]
    assert "no column is called 'nodes'" in stack.err("tasks", "-o", "nodes", status=64)


def test_a_limit_cuts_the_list_and_says_so(stack, executor):
    futures = [executor.submit(abs, n) for n in range(5)]
    for future in futures:
        future.result()
    done = stack.run("tasks", group(executor), "--limit=3")
    assert len(table(done.stdout)) == 3
    assert done.stderr == "There are more: --limit 6 shows the next.\n"
    done = stack.run("tasks", group(executor), "--limit=5")
    assert (len(table(done.stdout)), done.stderr) == (5, "")
    assert stack.json("tasks", group(executor), "--limit=2")["more"] is True


def test_more_than_one_page_is_one_list(stack, executor):
    executor.batch_size = 400
    futures = [executor.submit(abs, n) for n in range(1100)]
    for future in futures:
        future.wait_submitted(60)
    told = stack.json("tasks", group(executor), "--limit=1050")
    assert told["more"] is True
    ids = {task["task_id"] for task in told["tasks"]}
    assert len(ids) == 1050
    assert ids < {future.task_id for future in futures}
    for future in futures:
        future.result()


def test_the_keys_of_the_json_stay(stack, executor):
    executor.submit(abs, 1).result()
    told = stack.json("tasks", group(executor))
    assert set(told) == {"tasks", "more"}
    assert set(told["tasks"][0]) == {
        "task_id", "task_group_id", "endpoint_id", "function_id", "function_name", "state",
        "submitted", "started", "stopped", "ended", "error", "jobid", "jobid_f58", "runtime",
        "returncode", "queue_time", "run_time", "node", "worker", "attempts", "cpu_time", "max_rss",
        "failed_attempts", "printed",
    }  # fmt: skip
    assert all(told["tasks"][0][key] for key in ("node", "worker", "attempts", "cpu_time"))


def test_a_group_without_tasks_is_no_error(stack):
    assert stack.out("tasks", f"--group={uuid.uuid4()}") == "No such tasks of yours.\n"


def test_wrong_arguments_are_refused_by_name(stack):
    assert "'x' is not a valid UUID" in stack.err("tasks", "--group=x", status=64)
    said = stack.err("tasks", "--state=busy", status=64)
    assert "'busy' is not one of 'open', 'ended', 'received'" in said
    assert "--limit" in stack.err("tasks", "--limit=0", status=64)
    assert "no endpoint is called 'nowhere'" in stack.err("tasks", "nowhere", status=66)
    configure(stack, "idle")
    assert "was never started" in stack.err("tasks", "idle", status=66)


def test_without_a_service_tasks_exits_with_69_and_without_credentials_with_78(bare, free_port):
    away = {
        "FLUX_ENDPOINT_SERVICE_URL": f"http://127.0.0.1:{free_port}",
        "FLUX_ENDPOINT_TOKEN": "token",
    }
    assert "can't reach the service" in bare.err("tasks", status=69, **away)
    assert "no credentials" in bare.err("tasks", status=78)


def test_group_says_how_far_a_task_group_is(stack, executor):
    good, bad = executor.submit(abs, -1), executor.submit(divmod, 1, 0)
    assert (good.result(), type(bad.exception()).__name__) == (1, "TaskExecutionFailed")
    first, second, _, titles, failure = stack.out("group", good.task_group_id).splitlines()
    assert first == "2 of 2 tasks have ended (100 %): 1 succeeded, 1 failed"
    assert second.startswith("submitted ")
    assert titles.split() == ["FAILURE", "TASKS", "NEWEST", "ERROR"]
    assert failure.split()[:3] == ["ZeroDivisionError", "1", bad.task_id]
    (kind,) = stack.json("group", good.task_group_id)["failures"]
    assert (kind["kind"], kind["tasks"], kind["task_id"]) == ("ZeroDivisionError", 1, bad.task_id)
    assert "is unknown" in stack.err("group", str(uuid.uuid4()), status=66)
