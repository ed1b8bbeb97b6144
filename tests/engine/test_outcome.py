"""What each end of a job means: every row of the table."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future

import pytest

from flux_endpoint.engine.outcome import Cancelled, Finished, Lost, Refused, end_of_job, outcome_of

FAILED = "subprocess.CalledProcessError"


class JobError(Exception):
    """Has what `flux.job.JobException` has."""

    def __init__(self, kind, note):
        super().__init__(f"{kind}: {note}")
        self.type, self.note, self.severity = kind, note, 0


def task_exit(exitcode, signaled=0):
    context = {"signaled": signaled, "exitcode": exitcode}
    return {"name": "shell.task-exit", "timestamp": 1.0, "context": context}


KILLED = "killed by signal 9 (SIGKILL); out of memory?"


@pytest.mark.parametrize(
    ("status", "events", "outcome"),
    [
        (0, [], Finished(0)),
        (None, [], Finished(0)),
        (3, [task_exit(3)], Finished(3, FAILED)),
        (137, [task_exit(137)], Finished(137, FAILED)),
        (137, [], Finished(137, FAILED)),
        (137, [task_exit(137, 9)], Finished(-9, FAILED, KILLED)),
        (143, [task_exit(143, 15)], Finished(-15, FAILED, "killed by signal 15 (SIGTERM)")),
        (137, [task_exit(1), task_exit(137, 9)], Finished(-9, FAILED, KILLED)),
        (137, [task_exit(143, 15)], Finished(137, FAILED)),
        (-9, [], Lost("the job shell was killed by signal 9 (SIGKILL)")),
        (-99, [], Lost("the job shell was killed by signal 99")),
    ],
)
def test_a_status(status, events, outcome):
    assert outcome_of(status, None, events) == outcome


NOT_FOUND = "task 0 (host n): start failed: app: No such file or directory"
NO_RIGHT = "task 0 (host n): start failed: app: Permission denied"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (
            JobError("timeout", "resource allocation expired"),
            Finished(124, "subprocess.TimeoutExpired", "resource allocation expired"),
        ),
        (JobError("cancel", "why not"), Cancelled("why not")),
        (JobError("cancel", ""), Cancelled("")),
        (CancelledError(), Cancelled("the job was cancelled before it was submitted")),
        (JobError("alloc", "unsatisfiable request"), Refused("unsatisfiable request")),
        (JobError("depend", "no such job"), Refused("no such job")),
        (JobError("validate", "bad"), Refused("bad")),
        (JobError("exec", NOT_FOUND), Finished(127, FAILED, NOT_FOUND)),
        (JobError("exec", NO_RIGHT), Finished(126, FAILED, NO_RIGHT)),
        (JobError("exec", "lost contact with n3"), Lost("exec: lost contact with n3")),
        (JobError("node-failure", "n3 is down"), Lost("node-failure: n3 is down")),
        (OSError("Missing key"), Refused("Flux refused the job: Missing key")),
        (ValueError("no such job"), Refused("Flux refused the job: no such job")),
        (RuntimeError("broken"), Lost("RuntimeError: broken")),
    ],
)
def test_an_exception(error, outcome):
    assert outcome_of(None, error, []) == outcome


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (JobError("cancel", ""), "its job was cancelled"),
        (JobError("cancel", "why not"), "its job was cancelled: why not"),
        (JobError("exec", "lost"), "its job failed: exec: lost"),
    ],
)
def test_how_a_job_ended_in_words(error, said):
    ended: Future[int] = Future()
    ended.set_exception(error)
    assert end_of_job(ended) == said


def test_a_rank_that_ended_the_job_says_with_what():
    error = JobError("exec", "task rank 1 on host n failed (Exit 7) and exit-on-error is set")
    assert outcome_of(None, error, []) == Finished(7, FAILED)
    assert outcome_of(None, error, [task_exit(0), task_exit(8)]) == Finished(8, FAILED)
    assert outcome_of(None, error, [task_exit(137, 9)]) == Finished(-9, FAILED, KILLED)
    error = JobError("exec", "task rank 1 on host n failed and exit-on-error is set")
    assert outcome_of(None, error, []) == Finished(1, FAILED)
