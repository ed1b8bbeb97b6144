"""`flux-endpoint task` and `trace`, as a person and as a program sees them."""

from __future__ import annotations

import json
import socket
import uuid

import pytest

from flux_endpoint import ShellFunction
from flux_endpoint.protocol.jobid import format_jobid
from waiting import until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.stack]


def screen(text):
    """The lines before the first blank one, by their titles."""
    head, *_ = text.partition("\n\n")
    return {line[:10].rstrip(): line[11:] for line in head.splitlines()}


def test_a_function_that_failed_is_shown_whole(stack, executor):
    future = executor.submit(divmod, 1, 0)
    assert future.exception() is not None
    said = stack.out("task", future.task_id)
    shown = screen(said)
    assert shown["Task"] == future.task_id
    assert shown["Function"].startswith("divmod (")
    assert shown["State"].startswith("failed, ")
    assert shown["Endpoint"] == f"local ({stack.endpoint_id()})"
    assert shown["Ran on"].startswith(f"{socket.gethostname()}, worker ")
    assert shown["Time"].startswith("waited ")
    assert "of CPU time, " in shown["Used"]
    assert "Job" not in shown
    for what in ("submitted", "sent to its endpoint", "started", "stopped", "result arrived"):
        assert f"s {what}\n" in said
    assert said.rstrip().endswith("ZeroDivisionError: integer division or modulo by zero")


def test_a_job_is_shown_by_its_id_with_its_events(stack, executor):
    executor.resource_specification = {"num_ranks": 1}
    future = executor.submit(ShellFunction("exit 3"))
    future.result(60)
    jobid = format_jobid(future.jobid(60))
    until(lambda: "job: clean" in stack.out("task", jobid))
    said = stack.shown("task", jobid)
    shown = screen(said)
    assert (shown["Task"], shown["Job"]) == (future.task_id, jobid)
    assert (shown["Exit code"], shown["Resources"]) == ("3", "num_ranks=1")
    assert "Used" in shown  # the embedded executor measures
    events = [line.split("job: ")[1].split()[0] for line in said.splitlines() if "job: " in line]
    assert events[0] == "submit"
    assert events.index("alloc") < events.index("start") < events.index("finish")
    told = stack.json("task", jobid)
    assert told["task_id"] == future.task_id
    assert {event["name"] for event in told["events"]} >= {"submit", "start", "finish"}
    assert (told["returncode"], told["jobid_f58"], told["attempts"]) == (3, jobid, 1)


@pytest.mark.parametrize("resources", [None, {"num_ranks": 1}])
def test_the_output_of_a_command_is_shown_by_its_task(stack, executor, resources):
    executor.resource_specification = resources
    future = executor.submit(ShellFunction("echo one; echo two >&2"))
    future.result(60)
    said = stack.out("logs", "--task", future.task_id)
    assert sorted(said.splitlines()) == ["stderr | two", "stdout | one"]
    plain = executor.submit(abs, 1)
    if resources is None:
        plain.result()
        assert "only commands do" in stack.err("logs", "--task", plain.task_id, status=66)


def test_tasks_that_are_not_there_are_named(stack):
    nobody = str(uuid.uuid4())
    assert f"task {nobody} is unknown" in stack.err("task", nobody, status=66)
    assert "none of your tasks has the job ƒ2WXGLe" in stack.err("task", "ƒ2WXGLe", status=66)
    assert "is neither a task's id" in stack.err("task", "x", status=64)


def test_a_trace_is_written_in_each_format(stack, executor, tmp_path):
    for future in [executor.submit(abs, n) for n in range(20)]:
        future.result()
    assert executor.submit(divmod, 1, 0).exception() is not None
    group = f"--group={executor.task_group_id}"
    page = tmp_path / "run.html"
    done = stack.run("trace", group, "-o", str(page))
    assert done.stderr.startswith(f"{page}: 21 tasks on ")
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "ZeroDivisionError: integer division or modulo by zero" in text
    assert stack.out("trace", "local", group, "--format=svg", "-o", "-").startswith("<svg ")
    told = json.loads(stack.out("trace", group, "--format=chrome", "-o", "-"))
    assert sum(event["ph"] == "X" for event in told["traceEvents"]) == 21
    done = stack.run("trace", group, "--limit=5", "--format=chrome", "-o", "-")
    assert "Only the 5 newest tasks were read" in done.stderr
    said = stack.err("trace", f"--group={uuid.uuid4()}", status=66)
    assert "there is no task to draw" in said
