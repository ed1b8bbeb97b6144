"""What the embedded executor has beyond the contract that it shares with Flux."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
import yaml

from flux_endpoint.engine.local import LocalExecutor
from flux_endpoint.engine.local.scratch import ScratchDirectory, _sweep

PATIENCE = 60.0


def file_options(path: Path | str, **options: object) -> dict[str, object]:
    output = {"output": {"stdout": {"type": "file", "path": str(path)}}}
    return {"shell": {"options": {**output, **options}}}


def test_a_jobspec_may_be_yaml(executor, spec):
    document = yaml.safe_dump(json.loads(spec("exit 3")))
    assert executor.submit(document).result(PATIENCE) == 3


def test_a_jobspec_may_be_signed_with_the_mechanism_none(executor, spec):
    parts = [base64.b64encode(part).decode() for part in (b"header", spec("exit 3").encode())]
    signed = ".".join([*parts, "none"])
    assert executor.submit(signed, pre_signed=True).result(PATIENCE) == 3


def test_the_execution_log_distinguishes_signals_from_exit_codes(executor, spec):
    def task_exit(script: str) -> dict[str, object]:
        future = executor.submit(spec(script))
        assert future.result(PATIENCE) == 137
        (event,) = [e for e in executor.exec_events(future.jobid()) if e.name == "shell.task-exit"]
        return event.context

    by_itself, killed = task_exit("exit 137"), task_exit("kill -9 $$")
    assert (by_itself["signaled"], by_itself["exitcode"]) == (0, 137)
    assert (killed["signaled"], killed["exitcode"], killed["wait_status"]) == (9, 137, 9)
    assert set(killed) == {
        "localid",
        "rank",
        "state",
        "pid",
        "wait_status",
        "signaled",
        "exitcode",
    }


def test_the_execution_log_is_in_order_and_has_every_task(executor, spec):
    future = executor.submit(spec("exit 0", slots=4))
    future.result(PATIENCE)
    names = [event.name for event in executor.exec_events(future.jobid())]
    assert names[:4] == ["init", "starting", "shell.init", "shell.start"]
    assert names[-2:] == ["complete", "done"]
    assert names.count("shell.task-exit") == 4
    assert names.count("shell-exit") == 2


def test_an_unknown_job_has_no_execution_log(executor):
    with pytest.raises(FileNotFoundError, match="unknown job id"):
        executor.exec_events(5)


def test_tasks_know_their_virtual_node_and_no_flux_instance(executor, spec, tmp_path):
    environment = {"FLUX_URI": "local:///elsewhere", "PMI_RANK": "7"}
    script = "echo $FLUX_ENDPOINT_LOCAL_NODE ${FLUX_URI-none} ${PMI_RANK-none}"
    job = spec(script, slots=4, environment=environment, **file_options(tmp_path / "out"))
    assert executor.submit(job).result(PATIENCE) == 0
    lines = sorted((tmp_path / "out").read_text().splitlines())
    # Each has a PMI rank of this job, and not the inherited one.
    assert lines == ["0 none 0", "0 none 1", "1 none 2", "1 none 3"]


def test_a_relative_directory_is_below_this_process_s(spec, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with LocalExecutor(nodes=1, cores_per_node=2) as executor:
        job = spec("pwd", slots=2, cwd="sub", **file_options("out"))
        assert executor.submit(job).result(PATIENCE) == 0
    assert (tmp_path / "sub" / "out").read_text().split() == [str(tmp_path / "sub")] * 2


def test_gpus_are_given_to_one_job_at_a_time(executor, spec, tmp_path):
    out = file_options(tmp_path / "{{id}}")
    os.mkfifo(tmp_path / "go")
    futures = [
        executor.submit(
            spec("echo $CUDA_VISIBLE_DEVICES; read line < go", gpus=1, cwd=str(tmp_path), **out)
        )
        for _ in range(4)
    ]
    where = queue.SimpleQueue()
    for future in futures:
        future.add_event_callback(
            "alloc", lambda f, e: where.put(e.context["annotations"]["sched"])
        )
    summaries = {where.get(timeout=PATIENCE)["resource_summary"] for _ in futures}
    assert summaries == {f"rank{r}/core{i},gpu{i}" for r in (0, 1) for i in (0, 1)}
    for future in futures:
        executor.kill_job(future.jobid(PATIENCE), signal.SIGKILL)
        future.result(PATIENCE)


def test_gpus_may_be_split_among_the_tasks(executor, spec, tmp_path):
    job = spec(
        "echo $FLUX_TASK_LOCAL_ID $CUDA_VISIBLE_DEVICES",
        slots=2,
        gpus=1,
        **file_options(tmp_path / "out", **{"gpu-affinity": "per-task"}),
    )
    assert executor.submit(job).result(PATIENCE) == 0
    assert sorted((tmp_path / "out").read_text().splitlines()) == ["0 0", "1 1"]


def test_standard_input_is_empty(executor, spec):
    assert executor.submit(spec("cat")).result(PATIENCE) == 0


def test_files_of_the_executor_are_gone_after_shutdown(spec, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LocalExecutor() as executor:
        executor.submit(spec("echo said; touch $FLUX_JOB_TMPDIR/file")).result(PATIENCE)
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_an_executor_are_its_own_from_their_first_moment(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock = fcntl.flock

    def late_lock(descriptor, operation):
        if not operation & fcntl.LOCK_NB:
            _sweep(tmp_path)  # what another one does when it starts
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late_lock)
    scratch = ScratchDirectory()
    assert scratch.path.is_dir()
    _sweep(tmp_path)
    assert scratch.path.is_dir()
    scratch.remove()
    assert not scratch.path.exists()


def test_a_jobs_temporary_directory_is_removed_before_its_end_is_reported(
    executor, spec, monkeypatch
):
    told: list[str] = []
    remove = shutil.rmtree

    def observed(path, **options):
        for job in executor._shared.instance._jobs.values():
            told.extend(event.name for event in job.events)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", observed)
    executor.submit(spec("exit 0")).result(PATIENCE)
    assert told[-1] == "start"


def test_shutdown_cancels_futures_whose_jobs_were_not_submitted(spec, tmp_path):
    executor = LocalExecutor()
    held, entered, go = threading.Event(), threading.Event(), tmp_path / "go"
    first = executor.submit(spec(f"while [ ! -e {go} ]; do sleep 0.05; done"))
    first.add_event_callback("finish", lambda *_: (entered.set(), held.wait(PATIENCE)))
    go.touch()
    assert entered.wait(PATIENCE)  # the thread that would submit the others is busy
    others = [executor.submit(spec("exit 0")) for _ in range(3)]
    executor.shutdown(wait=False, cancel_futures=True)
    held.set()
    assert all(future.cancelled() for future in others)
    assert first.result(PATIENCE) == 0
    executor.shutdown()


@pytest.mark.parametrize(
    "options", [{"nodes": 0}, {"cores_per_node": 0}, {"gpus_per_node": -1}, {"threads": 0}]
)
def test_numbers_out_of_range_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        LocalExecutor(**options)


@pytest.mark.parametrize(
    "odd",
    [
        {"shell": 5},
        {"shell": {"options": {"output": 5}}},
        {"shell": {"options": {"output": {"stdout": {"path": 5}}}}},
        {"shell": {"options": {"output": {"stdout": {"path": "null\0byte"}}}}},
        {"shell": {"options": {"per-resource": {"type": "colour"}}}},
        {"cwd": 5},
        {"environment": {"=": "x"}},
        {"duration": float("nan")},
        {"duration": 1e300},
        {"constraints": {"ranks": ["lunch"]}},
        {"constraints": {"ranks": [5]}},
        {"constraints": {"ranks": ["0-999999999999"]}},
        {"constraints": {"hostlist": [["nested"]]}},
        {"dependencies": [{"scheme": "afterok", "value": "ƒ1"}]},
        {"job": {"name": 5}},
    ],
    ids=str,
)
def test_an_unusual_jobspec_affects_no_other_job(executor, spec, odd):
    document = json.loads(spec("exit 0"))
    document["attributes"]["system"].update(odd)
    future = executor.submit(json.dumps(document))
    future.exception(PATIENCE)
    assert executor.submit(spec("exit 3")).result(PATIENCE) == 3


def test_a_job_of_too_many_tasks_is_refused(executor, spec):
    document = json.loads(spec("exit 0"))
    document["tasks"][0]["count"] = {"total": 10**12}
    exception = executor.submit(json.dumps(document)).exception(PATIENCE)
    assert exception.type == "exec"
    assert "the most is 10000" in exception.note


def test_processes_left_by_a_job_end_with_it(executor, spec, tmp_path):
    readable, writable = os.pipe()
    path = f"/proc/{os.getpid()}/fd/{writable}"
    job = spec("(setsid sleep 1000 &) ; exit 0", **file_options(path))
    assert executor.submit(job).result(PATIENCE) == 0
    os.close(writable)
    with os.fdopen(readable) as stream:
        assert stream.read() == ""  # at its end: nobody can write any more


def helper_of(executor: LocalExecutor) -> psutil.Process:
    return psutil.Process(executor._shared.instance._keeper.pid)


def test_jobs_end_and_others_run_when_the_process_helper_is_killed(executor, spec):
    started = threading.Event()
    future = executor.submit(spec("sleep 60"))
    future.add_event_callback("start", lambda *_: started.set())
    assert started.wait(PATIENCE)
    helper_of(executor).kill()
    assert future.result(PATIENCE) == -signal.SIGKILL
    assert executor.submit(spec("exit 3")).result(PATIENCE) == 3


def test_futures_fail_when_the_executor_breaks(spec):
    executor = LocalExecutor()
    future = executor.submit(spec("sleep 60"))
    future.jobid(PATIENCE)

    def fail() -> None:
        raise ZeroDivisionError("broken on purpose")

    executor._shared.instance._post(fail)
    assert isinstance(future.exception(PATIENCE), ZeroDivisionError)
    assert executor._broken_event.is_set()
    with pytest.raises(RuntimeError, match="Executor is broken"):
        executor.submit(spec("exit 0"))
    with pytest.raises(RuntimeError, match="shut down"):
        executor.cancel_job(5)
    executor.shutdown()


def test_jobs_die_with_the_program_that_submitted_them(spec, monkeypatch, tmp_path):
    program = (
        "import sys\n"
        "from flux_endpoint.engine.local import LocalExecutor\n"
        "LocalExecutor().submit(sys.argv[1])\n"
        "sys.stdin.read()\n"
    )
    readable, writable = os.pipe()
    path = f"/proc/{os.getpid()}/fd/{writable}"
    job = spec("echo up; (setsid sleep 1000 &); sleep 1000", **file_options(path))
    command = [sys.executable, "-c", program, job]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with (
        os.fdopen(readable) as stream,
        subprocess.Popen(command, stdin=subprocess.PIPE, env=env) as owner,
    ):
        assert stream.readline() == "up\n"
        os.close(writable)
        owner.kill()
        assert stream.read() == ""
        owner.wait(PATIENCE)  # its lock is held until it is gone
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LocalExecutor():  # clears up after the other
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_ends_waits_for_its_jobs(spec, tmp_path):
    program = (
        "import sys\n"
        "from flux_endpoint.engine.local import LocalExecutor\n"
        "LocalExecutor().submit(sys.argv[1])\n"
    )
    job = spec("echo done", **file_options(tmp_path / "out"))
    subprocess.run([sys.executable, "-c", program, job], check=True, timeout=PATIENCE)
    assert (tmp_path / "out").read_text() == "done\n"
