"""Ends of jobs that take long to read: no other job waits for them, and each is told once."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_world import PATIENCE, buffer_of

from flux_endpoint.engine.flux_backend import FluxBackend
from flux_endpoint.engine.jobs.runner import JobRunner
from flux_endpoint.engine.local_backend import LocalBackend
from flux_endpoint.functions import ShellFunction
from flux_endpoint.protocol.jobid import parse_jobid

ONE = {"num_ranks": 1}
ON_FLUX = pytest.mark.parametrize(
    "kind", [pytest.param("flux", marks=pytest.mark.flux)], indirect=True
)
EMBEDDED = pytest.mark.parametrize("kind", ["local"], indirect=True)


class SlowReads:
    """Has the backend's answers on jobs' ends wait, from the next one on, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str, method: str) -> None:
        self.asked = threading.Event()
        self._gate = threading.Event()
        self.closed = True
        owner = FluxBackend if kind == "flux" else LocalBackend
        real: Callable[..., Any] = getattr(owner, method)

        def slow(*args: Any) -> Any:
            if self.closed:
                self.asked.set()
                assert self._gate.wait(2 * PATIENCE)
            return real(*args)

        monkeypatch.setattr(owner, method, slow)

    def wait(self) -> None:
        """Wait until one is being read, and have the others be read at once."""
        assert self.asked.wait(PATIENCE)
        self.closed = False

    def open(self) -> None:
        self.closed = False
        self._gate.set()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, kind: str) -> Iterator[SlowReads]:
    reads = SlowReads(monkeypatch, kind, "exec_events")
    yield reads
    reads.open()


def test_a_slowly_read_end_does_not_delay_other_jobs(make_world, slow):
    world = make_world(min_nodes=0)
    late = world.submit(ShellFunction("exit 3"), spec=ONE)
    slow.wait()
    assert world.call(ShellFunction("exit 4"), spec=ONE).value.returncode == 4
    sleeper = world.submit(ShellFunction("sleep 1000"), spec=ONE)
    world.event(sleeper, "start")
    world.engine.cancel(sleeper)
    assert world.end(sleeper).code == "TaskCancelled"
    assert not world.has_ended(late)
    slow.open()
    assert world.end(late).value.returncode == 3


def test_the_end_of_a_job_that_exits_with_0_is_not_read(make_world, slow):
    world = make_world(min_nodes=0)
    assert world.call(ShellFunction("echo 0"), spec=ONE).value.stdout == "0\n"
    assert not slow.asked.is_set()


def test_a_job_that_has_ended_is_not_cancelled_while_its_end_is_read(make_world, slow):
    world = make_world(min_nodes=0)
    task = world.submit(ShellFunction("exit 3"), spec=ONE)
    slow.wait()
    world.engine.cancel(task)
    world.engine.cancel(task, 15)
    assert world.call(ShellFunction("exit 4"), spec=ONE).value.returncode == 4
    slow.open()
    assert world.end(task).value.returncode == 3
    assert world.repeated == 0


def test_a_job_keeps_its_end_when_the_instance_is_lost_while_it_is_read(make_world, slow):
    world = make_world(min_nodes=0)
    task = world.submit(ShellFunction("exit 3"), spec=ONE)
    slow.wait()
    world.engine.lose("the test takes it away")
    world.wait_lost()
    slow.open()
    assert world.end(task).value.returncode == 3
    assert world.repeated == 0


def test_an_engine_that_stops_waits_for_an_end_that_is_being_read(make_world, slow, monkeypatch):
    awaiting, try_to_stop = threading.Event(), JobRunner._try_to_stop

    def told(self, stop):
        awaiting.set()
        return try_to_stop(self, stop)

    monkeypatch.setattr(JobRunner, "_try_to_stop", told)
    world = make_world(min_nodes=0)
    task = world.submit(ShellFunction("exit 3"), spec=ONE)
    slow.wait()
    stopping = threading.Thread(target=world.stop)
    stopping.start()
    assert awaiting.wait(PATIENCE)
    slow.open()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert world.end(task).value.returncode == 3
    assert world.repeated == 0


@ON_FLUX  # jobs of the embedded executor end with it
def test_an_end_that_was_not_read_before_the_engine_stopped_is_read_by_the_next(
    make_world, slow, tmp_path
):
    count = tmp_path / "count"
    command = f"echo run >> {count}; exit 3"
    first = make_world(tmp_path / "endpoint", min_nodes=0)
    task = first.submit(ShellFunction(command), spec=ONE)
    slow.wait()
    first.stop()
    assert not first.has_ended(task)
    slow.open()
    before = {task: (buffer_of(ShellFunction(command)), ONE)}
    second = make_world(tmp_path / "endpoint", min_nodes=0, recovers=before)
    assert second.end(task).value.returncode == 3
    assert not first.has_ended(task)
    assert count.read_text() == "run\n"


def test_more_ends_than_threads_are_all_read(make_world, slow):
    world = make_world(min_nodes=0)
    tasks = [world.submit(ShellFunction(f"exit {n + 1}"), spec=ONE) for n in range(12)]
    assert slow.asked.wait(PATIENCE)
    slow.open()
    assert [end.value.returncode for end in world.ends(tasks)] == list(range(1, 13))


# Much output


@ON_FLUX
def test_the_last_output_of_a_followed_job_is_returned(make_world):
    world = make_world(min_nodes=0)
    answer = subprocess.run(
        ["flux", "submit", "seq", "1", "20000"], capture_output=True, text=True, check=True
    )
    task = world.attach(parse_jobid(answer.stdout.strip()))
    assert world.end(task).value.stdout == "".join(f"{n}\n" for n in range(19001, 20001))


# Named pipes


def read_pipe(path: Any, into: list[str]) -> threading.Thread:
    def read() -> None:
        into.append(path.read_text())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return reader


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_job_that_writes_to_a_named_pipe_waits_for_its_reader_alone(make_world, tmp_path, stream):
    world = make_world(min_nodes=0)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = ShellFunction("echo out; echo err >&2", **{stream: str(pipe)})
    task = world.submit(command, spec=ONE)
    assert world.call(ShellFunction("echo other"), spec=ONE).value.stdout == "other\n"
    assert not world.has_ended(task)
    read: list[str] = []
    reader = read_pipe(pipe, read)
    result = world.end(task).value
    reader.join(PATIENCE)
    assert read == [{"stdout": "out\n", "stderr": "err\n"}[stream]]
    assert result.returncode == 0
    assert getattr(result, stream) == ""


def test_a_job_that_waits_for_the_reader_of_a_named_pipe_can_be_cancelled(make_world, tmp_path):
    world = make_world(min_nodes=0)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    task = world.submit(ShellFunction("echo out", stdout=str(pipe)), spec=ONE)
    world.event(task, "alloc")
    world.engine.cancel(task)
    assert world.end(task).code == "TaskCancelled"


@EMBEDDED  # on Flux the job goes on
def test_a_job_that_writes_to_a_named_pipe_is_begun_again_after_a_restart(tmp_path, make_world):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = ShellFunction("echo out", stdout=str(pipe))
    first = make_world(tmp_path / "endpoint", min_nodes=0)
    task = first.submit(command, spec=ONE)
    first.event(task, "alloc")
    first.stop()
    before = {task: (buffer_of(command), ONE)}
    second = make_world(tmp_path / "endpoint", min_nodes=0, recovers=before)
    assert second.call(ShellFunction("echo other"), spec=ONE).value.stdout == "other\n"
    read: list[str] = []
    reader = read_pipe(pipe, read)
    assert second.end(task).value.returncode == 0
    reader.join(PATIENCE)
    assert read == ["out\n"]


def test_a_file_of_output_is_emptied_or_appended_to_as_before(make_world, tmp_path):
    world = make_world(min_nodes=0)
    path = tmp_path / "out"
    for _ in range(2):
        result = world.call(ShellFunction("echo line", stdout=str(path)), spec=ONE).value
        assert result.stdout == "line\n"
    assert path.read_text() == "line\nline\n"
