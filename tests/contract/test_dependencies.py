"""A job waits for others and for moments, or is refused, as Flux has it; and queues."""

from __future__ import annotations

import errno
import socket
import time
from typing import Any

import pytest
from worlds import PATIENCE, Recorder, text

from flux_endpoint.protocol.jobid import format_jobid


def submitted(world, *command: str, on: dict[str, Any] | None = None, **options: Any) -> Recorder:
    dependencies = [{"scheme": scheme, "value": str(value)} for scheme, value in (on or {}).items()]
    options = {**options, "dependencies": dependencies} if on else options
    urgency = options.pop("urgency", 16)
    return Recorder(world.executor.submit(text(*command, **options), urgency=urgency))


def refusal(world, **options: Any) -> str:
    error = submitted(world, "true", **options).future.exception(PATIENCE)
    assert isinstance(error, OSError)
    assert error.errno == errno.EINVAL
    return str(error.strerror)


def ended(world, command: str) -> int:
    job = submitted(world, command)
    job.wait("clean")
    return int(job.future.jobid())


@pytest.fixture
def good(world) -> int:
    return ended(world, "true")


@pytest.fixture
def bad(world) -> int:
    return ended(world, "false")


@pytest.fixture
def cancelled(world) -> int:
    """A job that never started."""
    job = submitted(world, "true", urgency=0)
    world.cancel(job.future.jobid())
    job.wait("clean")
    return int(job.future.jobid())


def test_a_job_runs_at_once_after_a_job_that_ended_so(world, good, bad, cancelled):
    jobs = [
        submitted(world, "true", on={scheme: jobid})
        for scheme, jobid in [
            ("afterstart", bad),
            ("afterany", bad),
            ("afterany", cancelled),
            ("afterok", good),
            ("afternotok", bad),
        ]
    ]
    assert [job.future.result(PATIENCE) for job in jobs] == [0] * len(jobs)


def test_a_job_after_one_that_ended_otherwise_is_refused(world, good, bad, cancelled):
    expected = {
        ("afterok", bad): f"dependency: afterok: job {bad} failed or was canceled",
        ("afternotok", good): f"dependency: afternotok: job {good} succeeded",
        ("afterexcept", bad): f"dependency: afterexcept: job {bad}: no exception",
        ("afterok", cancelled): f"dependency: after: {cancelled} never started",
        ("afterstart", cancelled): f"dependency: after: {cancelled} never started",
    }
    assert {key: refusal(world, on=dict([key])) for key in expected} == expected


@pytest.mark.parametrize(
    ("scheme", "value", "why"),
    [
        ("afterok", "f1", "dependency: afterok: id f1: job not found"),
        ("afterok", "lunch!", 'dependency: afterok: "lunch!" is not a valid jobid'),
        ("lunch", "1", 'dependency scheme "lunch" not supported'),
        ("singleton", "", "singleton jobs require a job name"),
        ("begin-time", "soon", "Invalid begin-time=soon"),
        ("begin-time", "-5", "Invalid begin-time=-5"),
        ("begin-time", "inf", "Invalid begin-time=inf"),
        ("begin-time", "nan", "Invalid begin-time=nan"),
    ],
)
def test_an_invalid_dependency_is_refused(world, scheme, value, why):
    assert refusal(world, on={scheme: value}) == why


def test_malformed_dependencies_are_rejected(world):
    reasons = []
    for wrong in ({"scheme": "afterok"}, {"value": "1"}):
        future = world.executor.submit(text("true", dependencies=[wrong]))
        reasons.append(future.exception(PATIENCE).strerror)
    future = world.executor.submit(text("true", dependencies={}))
    reasons.append(future.exception(PATIENCE).strerror)
    assert reasons == [
        "Missing key (value)",
        "Missing key (scheme)",
        "attributes.system.dependencies must be a list",
    ]


def test_a_job_waits_for_the_end_of_another(world, tmp_path):
    go = tmp_path / "go"
    first = submitted(world, "sh", "-c", f"until test -e {go}; do sleep 0.02; done")
    name = format_jobid(first.future.jobid())
    started = submitted(world, "true", on={"afterstart": name})
    late = submitted(world, "true", on={"afterok": name})
    vain = submitted(world, "true", on={"afternotok": name})
    assert started.future.result(PATIENCE) == 0
    assert late.names == vain.names == ["submit"]
    go.touch()
    assert late.future.result(PATIENCE) == 0
    assert late.wait("depend").timestamp >= first.wait("clean").timestamp
    error = vain.future.exception(PATIENCE)
    assert isinstance(error, world.job_exception)
    assert error.type == "dependency"
    assert error.note == f"dependency after-failure={name} can never be satisfied"
    vain.wait("clean")


def test_a_job_after_one_that_is_cancelled_before_its_start_does_not_run(world):
    held = submitted(world, "true", urgency=0)
    jobid = int(held.future.jobid())
    schemes = ["afterany", "afterok", "afternotok", "afterstart"]
    waiting = [submitted(world, "true", on={scheme: jobid}) for scheme in schemes]
    for job in waiting:
        job.wait("submit")
    world.cancel(jobid)
    assert waiting[0].future.result(PATIENCE) == 0
    for job in waiting[1:]:
        assert "job never started" in job.future.exception(PATIENCE).note


def test_a_chain_of_jobs_fails_together(world):
    first = submitted(world, "true", urgency=0)
    chain = [first]
    for _ in range(50):
        chain.append(submitted(world, "true", on={"afterok": int(chain[-1].future.jobid())}))
    chain[-1].future.jobid()
    world.cancel(first.future.jobid())
    assert chain[-1].future.exception(PATIENCE).type == "dependency"


def test_a_job_may_have_several_dependencies(world, good):
    held = submitted(world, "true", urgency=0)
    jobid = int(held.future.jobid())
    both = submitted(world, "true", on={"afterok": good, "afterany": jobid})
    both.wait("submit")
    assert both.names == ["submit"]
    world.cancel(jobid)
    assert both.future.result(PATIENCE) == 0


def test_a_job_waits_for_its_begin_time(world):
    moment = time.time() + 1.0
    job = submitted(world, "true", on={"begin-time": moment})
    assert job.future.result(PATIENCE) == 0
    assert job.wait("depend").timestamp >= moment - 0.1  # Flux's clock of timers is another one
    assert submitted(world, "true", on={"begin-time": 0}).future.result(PATIENCE) == 0


def test_a_job_that_waits_for_a_moment_can_be_cancelled(world):
    job = submitted(world, "true", on={"begin-time": time.time() + 3600})
    world.cancel(job.future.jobid(), "no more")
    assert job.future.exception(PATIENCE).note == "no more"
    job.wait("clean")
    assert job.names == ["submit", "exception", "clean"]


def test_a_singleton_waits_for_its_namesakes(world):
    first = submitted(world, "true", urgency=0, job={"name": "alone"})
    first.future.jobid()
    other = submitted(world, "true", on={"singleton": ""}, job={"name": "other"})
    second = submitted(world, "true", on={"singleton": ""}, job={"name": "alone"})
    assert other.future.result(PATIENCE) == 0
    assert second.names == ["submit"]
    world.cancel(first.future.jobid())
    assert second.future.result(PATIENCE) == 0


@pytest.mark.parametrize("queue", ["no-such-queue", ""])
def test_an_unknown_queue_is_refused(world, queue):
    assert refusal(world, queue=queue).startswith(f"'{queue}' is not a valid queue")


def test_a_bank_is_accepted_and_has_no_effect(world):
    assert submitted(world, "true", bank="physics").future.result(PATIENCE) == 0


@pytest.mark.parametrize(
    ("hosts", "why"),
    [
        ("nowhere", "host constraint contains invalid hosts: host 'nowhere' not found"),
        ("no[08-12]", "host constraint contains invalid hosts: hosts 'no[08-12]' not found"),
        ("no[1-", "Invalid hostlist: 'no[1-'"),
    ],
)
def test_unknown_hosts_are_rejected(world, hosts, why):
    future = world.executor.submit(text("true", constraints={"hostlist": [hosts]}))
    error = future.exception(PATIENCE)
    assert isinstance(error, PermissionError)
    assert error.strerror == why


def test_an_existing_host_can_be_requested(world):
    constraint = {"hostlist": [socket.gethostname()]}
    assert submitted(world, "true", constraints=constraint).future.result(PATIENCE) == 0
