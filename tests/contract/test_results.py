"""How a job ends is told by its future's result or exception."""

from __future__ import annotations

import errno
import json
import signal
from typing import Any

import pytest
from worlds import PATIENCE, Recorder, jobspec, shell, text

from waiting import until


def result(world, spec: str, **options: Any) -> int:
    return world.executor.submit(spec, **options).result(PATIENCE)


def failure(world, spec: Any, **options: Any) -> Any:
    return world.executor.submit(spec, **options).exception(PATIENCE)


@pytest.mark.parametrize("status", [0, 1, 3, 127, 255])
def test_an_exit_status_is_the_result(world, status):
    assert result(world, shell(f"exit {status}")) == status


def test_the_highest_status_of_the_tasks_is_the_result(world):
    assert result(world, shell("exit $FLUX_TASK_RANK", slots=2)) == 1


def test_the_highest_status_of_the_nodes_is_the_result(world):
    script = "test $FLUX_TASK_RANK = 1 && exit 5; exit 2"
    assert result(world, shell(script, nodes=3)) == 5


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_task_that_a_signal_ends_counts_as_128_and_its_number(world, signum):
    assert result(world, shell(f"ulimit -c 0; kill -{signum:d} $$")) == 128 + signum


def test_a_job_shell_that_a_signal_ends_gives_the_negative_number(world):
    assert result(world, shell("kill -9 $PPID; exec sleep 60")) == -9


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_that_is_sent_to_a_job_reaches_all_tasks(world, signum, tmp_path):
    file = tmp_path / "out"
    output = {"output": {"stdout": {"type": "file", "path": str(file)}}}
    spec = text("sh", "-c", "echo up; exec sleep 60", nodes=2, shell={"options": output})
    future = world.executor.submit(spec)
    # Flux does not tell of tasks' starts, and drops a signal for one that has not been started.
    until(lambda: file.exists() and file.read_text() == "up\n" * 2)
    world.kill(future.jobid(), signum)
    assert future.result(PATIENCE) == 128 + signum


def test_a_canceled_job_has_a_job_exception(world):
    future = world.executor.submit(text("sleep", "600"))
    Recorder(future).wait("start")
    world.cancel(future.jobid(), "not needed any more")
    exception = future.exception(PATIENCE)
    assert isinstance(exception, world.job_exception)
    assert (exception.type, exception.severity) == ("cancel", 0)
    assert exception.note == "not needed any more"
    assert exception.timestamp > 0
    assert str(exception) == "job.exception: type=cancel: not needed any more"


def test_a_job_that_ran_out_of_time_has_a_job_exception(world):
    exception = failure(world, text("sleep", "600", duration=0.3))
    assert isinstance(exception, world.job_exception)
    assert (exception.type, exception.note) == ("timeout", "resource allocation expired")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("no-such-program", "No such file or directory"),
        ("/no/such/program", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
    ],
)
def test_a_program_that_cannot_be_started_is_named(world, program, reason):
    exception = failure(world, text(program))
    assert isinstance(exception, world.job_exception)
    assert exception.type == "exec"
    assert exception.note.startswith("task 0 (host ")
    assert exception.note.endswith(f"start failed: {program}: {reason}")


def test_an_output_file_that_cannot_be_opened_is_an_exec_exception(world):
    options = {"output": {"stdout": {"type": "file", "path": "/no/such/directory/out"}}}
    exception = failure(world, text("true", shell={"options": options}))
    assert exception.type == "exec"
    assert "No such file or directory" in exception.note


@pytest.mark.parametrize(
    "request_",
    [
        {"cores": 10_000},
        {"slots": 10_000},
        {"nodes": 100},
        {"nodes": 99, "exclusive": True},
        {"gpus": 1},
    ],
    ids="-".join,
)
def test_a_request_larger_than_the_instance_is_unsatisfiable(world, request_):
    exception = failure(world, text("true", **request_))
    assert isinstance(exception, world.job_exception)
    assert exception.type == "alloc"
    assert exception.note.startswith("unsatisfiable request: need ")


def test_the_note_says_what_is_missing(world):
    cores = world.nodes * world.cores_per_node
    assert failure(world, text("true", cores=1000)).note == (
        "unsatisfiable request: need 1 slot(s) of 1000 core(s), only 0 such slot(s) available "
        f"(total cores: {cores})"
    )
    assert failure(world, text("true", nodes=100)).note == (
        f"unsatisfiable request: need 100 node(s) with 1 cores each, only {world.nodes} eligible"
    )
    assert failure(world, text("true", gpus=1)).note == (
        "unsatisfiable request: need 1 slot(s) with 1 GPU(s) each, only 0 available (total GPUs: 0)"
    )


def broken(**changes: Any) -> str:
    return json.dumps({**jobspec("true"), **changes})


def without(key: str) -> str:
    return json.dumps({k: v for k, v in jobspec("true").items() if k != key})


def with_task(**changes: Any) -> str:
    return broken(tasks=[{**jobspec("true")["tasks"][0], **changes}])


def with_slot(**changes: Any) -> str:
    return broken(resources=[{**jobspec("true")["resources"][0], **changes}])


def with_system(**changes: Any) -> str:
    system = {**jobspec("true")["attributes"]["system"], **changes}
    return broken(attributes={"system": {k: v for k, v in system.items() if v is not None}})


REJECTED = {
    "Missing key (version)": without("version"),
    "Missing key (resources)": without("resources"),
    "Missing key (tasks)": without("tasks"),
    "Missing key (attributes)": without("attributes"),
    "Missing key (command)": broken(tasks=[{"slot": "task", "count": {"per_slot": 1}}]),
    "Extraneous key (colour)": broken(colour="blue"),
    "version must be 1": broken(version=2),
    "command array cannot have length of zero": with_task(command=[]),
    "command must be a list of strings": with_task(command="true"),
    "count must have exactly one key set": with_task(count={"per_slot": 1, "total": 1}),
    "node, slot, or core count must be > 0": with_slot(count=0),
    "slots must have labels": broken(
        resources=[{"type": "slot", "count": 1, "with": [{"type": "core", "count": 1}]}]
    ),
    "resource count must be an integer for type 'slot' (got 'dict')": with_slot(count={"min": 2}),
    "attributes.system.duration must be a number": with_system(duration="5m"),
    "attributes.system is a required key": broken(attributes={}),
    "unknown constraint operator 'sort'": with_system(constraints={"sort": ["fast"]}),
}


@pytest.mark.parametrize("why", REJECTED)
def test_a_malformed_jobspec_is_rejected_with_the_reason(world, why):
    future = world.executor.submit(REJECTED[why])
    exception = future.exception(PATIENCE)
    assert isinstance(exception, PermissionError)
    assert exception.strerror == why
    with pytest.raises(RuntimeError, match="job could not be submitted due to PermissionError"):
        future.jobid(PATIENCE)


def test_submitting_none_is_refused(world):
    exception = failure(world, None)
    assert type(exception) is OSError
    assert exception.errno == errno.EINVAL
    assert exception.strerror == "jobspec must not be None/NULL"


def test_submitting_text_that_is_not_a_jobspec_is_refused(world):
    exception = failure(world, "hello: [")
    assert exception.errno == errno.EINVAL
    assert exception.strerror.startswith("jobspec: invalid JSON: ")


@pytest.mark.parametrize("wrong", [5, {"version": 1}, ["true"]])
def test_submitting_another_type_is_refused(world, wrong):
    exception = failure(world, wrong)
    assert isinstance(exception, TypeError)
    assert str(exception) == "jobspec must be a Jobspec or string (either binary or unicode)"


def test_an_unsigned_jobspec_that_should_be_signed(world):
    exception = failure(world, text("true"), pre_signed=True)
    assert exception.errno == errno.EINVAL
    assert "could not unwrap jobspec" in exception.strerror


@pytest.mark.parametrize("urgency", [-1, 32])
def test_an_urgency_out_of_range(world, urgency):
    exception = failure(world, text("true"), urgency=urgency)
    assert (exception.errno, exception.strerror) == (errno.EINVAL, "urgency range is [0:31]")


def test_an_unknown_argument_of_submit(world):
    assert isinstance(failure(world, text("true"), not_an_argument=1), TypeError)


def test_resources_that_the_scheduler_cannot_read(world):
    exception = failure(world, broken(resources=[{"type": "node", "count": 1}]))
    assert isinstance(exception, world.job_exception)
    assert exception.type == "alloc"
    assert exception.note == "cannot parse jobspec: Unable to determine slot count"
