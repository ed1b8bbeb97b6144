"""What each end of a job means: every row of the table."""

from __future__ import annotations

import errno
from concurrent.futures import CancelledError, Future

import pytest

from flux_endpoint.engine.jobs.collect import with_abort_code
from flux_endpoint.engine.outcome import (
    Cancelled,
    Failed,
    Finished,
    Lost,
    Refused,
    end_of_job,
    outcome_of,
)

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
def test_an_exit_status_is_an_outcome(status, events, outcome):
    assert outcome_of(status, None, events) == outcome


#: What job shells say of a program that does not start.
START = "task 0 (host n): start failed: app: "
#: What they say of a rank that ended the job.
RANK = "app: task rank 1 on host n"


def execution(note):
    return JobError("exec", note)


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
    ],
)
def test_a_deliberate_end_is_an_outcome(error, outcome):
    assert outcome_of(None, error, []) == outcome


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("alloc", "unsatisfiable request"),
        ("alloc", 'alloc denied due to type="unsatisfiable"'),
        ("depend", "no such job"),
        ("dependency", "dependency afterok:ƒ2 can never be satisfied"),
        ("dependency", "dependency after:ƒ2 job never started"),
        ("validate", "bad"),
    ],
)
def test_a_job_that_could_never_run_is_refused(kind, note):
    assert outcome_of(None, JobError(kind, note), []) == Refused(note)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("No such file or directory", 127),
        ("Permission denied", 126),
        ("Operation not permitted", 126),
        ("Argument list too long", 126),
        ("Exec format error", 126),
        ("Text file busy", 126),
        ("Is a directory", 126),
    ],
)
def test_a_program_that_cannot_be_started_ends_as_in_a_shell(reason, code):
    note = START + reason
    assert outcome_of(None, execution(note), []) == Finished(code, FAILED, note)


@pytest.mark.parametrize(
    "reason",
    [
        "Cannot allocate memory",
        "Resource temporarily unavailable",
        "Too many open files",
        "Input/output error",
        "Stale file handle",
    ],
)
def test_a_program_that_its_node_cannot_start_is_lost(reason):
    assert outcome_of(None, execution(START + reason), []) == Lost(f"exec: {START}{reason}")


@pytest.mark.parametrize(
    ("note", "events", "outcome"),
    [
        (f"{RANK} failed (Exit 7) and exit-on-error is set", [], Finished(7, FAILED)),
        (f"{RANK} failed and exit-on-error is set", [], Finished(1, FAILED)),
        (f"{RANK} failed and exit-on-error is set", [task_exit(8)], Finished(8, FAILED)),
        (
            f"{RANK} failed (Killed) and exit-on-error is set",
            [task_exit(137, 9)],
            Finished(-9, FAILED, KILLED),
        ),
        (
            f"{RANK} exited (Exit 3) and exit-timeout=5s has expired",
            [task_exit(3)],
            Finished(3, FAILED),
        ),
        (
            f"{RANK} exited (Exit 0) and exit-timeout=5s has expired",
            [task_exit(0)],
            Finished(1, FAILED),
        ),
    ],
)
def test_a_rank_that_ended_the_job_says_with_what(note, events, outcome):
    assert outcome_of(None, execution(note), events) == outcome


def test_an_abort_is_the_programs_own_end():
    outcome = outcome_of(None, execution("PMI_Abort: aborted"), [task_exit(143, 15)])
    assert outcome == Finished(1, FAILED, "PMI_Abort: aborted", aborted=True)
    outcome = outcome_of(None, execution("PMI-1 wire protocol error"), [])
    assert outcome == Finished(1, FAILED, "PMI-1 wire protocol error")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Abort(42) on node 1 (rank 1 in comm 0): application called MPI_Abort", 42),
        ("Abort(-1) on node 0 (rank 0 in comm 0): application called MPI_Abort", 255),
        ("Abort(0) on node 0 (rank 0 in comm 0): application called MPI_Abort", 1),
        ("Abort(256) on node 0 (rank 0 in comm 0): application called MPI_Abort", 1),
        ("MPI_ABORT was invoked on rank 1 in communicator X\nwith errorcode 42.\n", 42),
        ("nothing of that kind", 1),
    ],
)
def test_the_code_of_an_abort_is_what_mpi_says(said, code):
    aborted = Finished(1, FAILED, "PMI_Abort: aborted", aborted=True)
    assert with_abort_code(aborted, f"going to\n{said}").returncode == code
    assert with_abort_code(Finished(3, FAILED), said).returncode == 3


@pytest.mark.parametrize(
    "note",
    [
        "node failure on n3 (rank 3)",
        "lost contact with job shell on broker n3 (rank 3)",
        "shell exited with unkillable processes on n3 (rank 3)",
        "sdexec constraint check failed on n3 (rank 3): AllowedCPUs",
        "sdexec service is not loaded on n3 (rank 3)",
        "job shell exec error on broker n3 (rank 3): flux-shell: No such file or directory",
        "job shell exec error on n3 (rank 3)",
        "job shell exec error",
        "shell rank 0 (on n3): Killed",
        f"{RANK.replace('task', 'shell')} failed and exit-on-error is set",
        "job shells still active on n3 (rank 3) 30s after leader shell exit",
        "n3 (rank 3) terminated before first barrier",
        "start barrier timeout waiting for 1/4 nodes (rank 3)",
        "barrier: broken",
        "failed to create guest ns",
        "failed to create ns name for job",
        "failed to create shell exit timer",
        "failed to initialize implementation",
        "failed to hash job",
        "failed to get bgexec ctx",
        "failed to get bulk-exec ctx",
        "bulk-exec: start failed",
        "bgexec: reattach failed",
        "reattach: failed to read exec.eventlog",
        "reattach to running job is not implemented",
        "job is not recoverable: no recoverable event",
        "job start failure",
        "Invalid resource set expiration 12.00",
        "unable to start expiration timer",
    ],
)
def test_a_failure_of_the_execution_system_is_lost(note):
    assert outcome_of(None, execution(note), []) == Lost(f"exec: {note}")


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("node-failure", "n3 is down"),
        ("prolog", "job prolog failed"),
        ("scheduler-restart", "failed to reallocate R for running job"),
        ("alloc-check", "resources already allocated"),
        ("alloc", "failed to commit R to kvs"),
        ("alloc", "failed to post alloc event: error"),
        ("dependency", "Failed to remove dependency after:ƒ2"),
    ],
)
def test_failures_of_other_parts_of_flux_are_losses(kind, note):
    assert outcome_of(None, JobError(kind, note), []) == Lost(f"{kind}: {note}")


@pytest.mark.parametrize(
    "note",
    [
        "shell_init: No such file or directory",
        "error opening input file '/x': No such file or directory",
        "failed rendering of mustachioed command args",
        "failed to initialize taskid=0",
        "taskmap=cyclic: invalid",
        "what nobody knows",
        "",
    ],
)
def test_another_end_by_the_job_shell_is_not_the_systems_fault(note):
    outcome = outcome_of(None, execution(note), [])
    assert isinstance(outcome, Failed)
    assert outcome.reason.endswith(note)


def test_an_exception_of_an_unknown_type_is_not_the_systems_fault():
    outcome = outcome_of(None, JobError("my-check", "no more of this"), [])
    assert isinstance(outcome, Failed)
    assert outcome.reason.endswith("my-check: no more of this")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (OSError("Missing key"), Refused("Flux refused the job: Missing key")),
        (OSError(errno.EINVAL, "no such queue"), Refused("Flux refused the job: no such queue")),
        (ValueError("no such job"), Refused("Flux refused the job: no such job")),
        (
            OSError(errno.ENOSYS, "No service matching job-ingest"),
            Lost("the job could not be submitted: OSError: No service matching job-ingest"),
        ),
        (RuntimeError("broken"), Lost("the job could not be submitted: RuntimeError: broken")),
    ],
)
def test_a_failed_submission_is_an_outcome(error, outcome):
    assert outcome_of(None, error, [], submitted=False) == outcome


@pytest.mark.parametrize("error", [OSError(errno.EEXIST, "File exists"), RuntimeError("broken")])
def test_a_job_with_an_id_was_not_refused(error):
    assert isinstance(outcome_of(None, error, []), Lost)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (JobError("cancel", ""), "its job was cancelled"),
        (JobError("cancel", "why not"), "its job was cancelled: why not"),
        (JobError("exec", "lost"), "its job failed: exec: lost"),
    ],
)
def test_outcomes_are_described_in_words(error, said):
    ended: Future[int] = Future()
    ended.set_exception(error)
    assert end_of_job(ended) == said
