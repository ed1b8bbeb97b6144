"""A job that was asked for before a restart is found by its mark, also while it is on its way."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import uuid

import pytest

from flux_endpoint.engine.ended_blocks import JOB_NAME, end_all_blocks, mark_of
from flux_endpoint.engine.jobs.records import JobRecords
from flux_endpoint.protocol.jobid import parse_jobid
from waiting import until

pytestmark = pytest.mark.flux

PATIENCE = 30


@pytest.fixture
def submit(flux_uri):
    """Submits a job that runs for long, with a mark; all are ended."""
    jobs = []

    def start(mark, *options):
        marks = [f"--setattr=user.flux_endpoint.{name}={value}" for name, value in mark.items()]
        command = ["flux", "submit", "-n1", *marks, *options, "sleep", "600"]
        environment = {**os.environ, "FLUX_URI": flux_uri}
        jobid = subprocess.check_output(command, text=True, env=environment).strip()
        jobs.append(jobid)
        return parse_jobid(jobid)

    yield start
    for jobid in jobs:
        subprocess.run(
            ["flux", "cancel", jobid], env={**os.environ, "FLUX_URI": flux_uri}, check=False
        )


@pytest.fixture
def mark():
    return {"submission": uuid.uuid4().hex}


def test_a_marked_job_that_exists_is_found_at_once(backend, submit, mark):
    submit({"submission": "another"})
    jobid = submit(mark)
    begun = time.monotonic()
    assert backend.await_marked(mark, PATIENCE) == jobid
    assert time.monotonic() - begun < PATIENCE / 2


def test_a_marked_job_that_arrives_later_is_found_on_arrival(backend, submit, mark):
    jobs = []
    timer = threading.Timer(0.5, lambda: jobs.append(submit(mark)))
    timer.start()
    found = backend.await_marked(mark, PATIENCE)
    timer.join()
    assert [found] == jobs


def test_waiting_for_a_marked_job_has_a_timeout(backend, submit, mark):
    submit({"submission": "another"})
    begun = time.monotonic()
    assert backend.await_marked(mark, 0.5) is None
    assert time.monotonic() - begun >= 0.5


def test_a_submission_note_without_a_job_id_finds_the_job_by_its_mark(backend, submit, tmp_path):
    records = JobRecords(backend, tmp_path)
    mark = records.begin("t", (1, 2), {"task": "t"})
    jobs = []
    timer = threading.Timer(0.5, lambda: jobs.append(submit(mark)))
    timer.start()
    found = records.find("t")
    timer.join()
    assert found is not None
    assert ([found.jobid], found.starts) == (jobs, (1, 2))


def test_earlier_blocks_have_ended_when_their_results_are_read(backend, submit, tmp_path):
    endpoint = str(uuid.uuid4())
    jobs = [submit(mark_of(endpoint), f"--job-name={JOB_NAME}") for _ in range(2)]
    other = submit(mark_of("another"), f"--job-name={JOB_NAME}")

    def there_are():
        return {job.jobid for job in backend.marked_jobs({"kind": "block"}, name=JOB_NAME)}

    def is_over(job):
        command = ["flux", "job", "eventlog", str(job)]
        environment = {**os.environ, "FLUX_URI": backend.instance}
        return " clean" in subprocess.check_output(command, text=True, env=environment)

    until(lambda: {*jobs, other} <= there_are())  # the list has them a moment later
    assert end_all_blocks(backend, endpoint, tmp_path / "none") == []
    assert {*jobs, other} <= there_are()
    (tmp_path / "blocks").mkdir()
    assert end_all_blocks(backend, endpoint, tmp_path / "blocks") == []
    assert [is_over(job) for job in (*jobs, other)] == [True, True, False]
