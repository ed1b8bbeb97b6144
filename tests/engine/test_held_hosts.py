"""Hosts of held allocations: what the engine sends to them, and what it does without an answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flux_endpoint.engine.backend import Resources
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.held import allocations, ends
from flux_endpoint.engine.held.allocations import HeldAllocations
from flux_endpoint.engine.held.host import variables_for_tasks
from flux_endpoint.engine.held.host_socket import HostSocket
from flux_endpoint.engine.held.hosts import START_TIMEOUT, HostLauncher, HostRecord
from flux_endpoint.engine.held.policy import TaskShape
from flux_endpoint.engine.held.settings import VARIABLE, HostSettings
from flux_endpoint.engine.held.tasks import DeclinedError, HeldTask
from flux_endpoint.engine.job_queue import JobQueue
from flux_endpoint.engine.job_setup import JobSetup
from flux_endpoint.engine.jobs.plan import Planner
from flux_endpoint.engine.local.event_log import EventLogEvent, JobException
from flux_endpoint.engine.local.future import LocalExecutorFuture
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.errors import EngineError

TWO = TaskShape(2, 1)
TASKS = TaskSettings("e", "/e/work", run_in_sandbox=False, allowed_serializers=None)


class Launcher:
    """Starts no processes; records what hosts are sent."""

    def __init__(self) -> None:
        self.hosts: list[HostRecord] = []
        self.sent: list[tuple[bytes, ...]] = []
        self.cancelled: list[HostRecord] = []

    def launch(self, shape: TaskShape) -> HostRecord:
        future = LocalExecutorFuture(None)
        future._set_jobid(7)
        self.hosts.append(HostRecord(f"h{len(self.hosts)}", shape, future))
        return self.hosts[-1]

    def send(self, _: HostRecord, *frames: bytes) -> None:
        self.sent.append(frames)

    def cancel(self, host: HostRecord, _: str) -> None:
        self.cancelled.append(host)

    def forget(self, _: HostRecord) -> str:
        return ""


@pytest.fixture
def launcher() -> Launcher:
    return Launcher()


@pytest.fixture
def backend() -> Any:
    cancelled: list[int] = []
    return SimpleNamespace(
        kind="flux",
        resources=Resources(nodes=1, cores=4, gpus=0),
        is_lost=lambda _: False,
        cancel=lambda jobid, _: cancelled.append(jobid),
        cancelled=cancelled,
    )


@pytest.fixture
def held(
    backend: Any, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> HeldAllocations:
    monkeypatch.setattr(allocations, "HostLauncher", lambda *_, **__: launcher)
    records: Any = SimpleNamespace(given=lambda *_: None)
    return HeldAllocations(
        backend,
        Planner("flux", tmp_path / "jobs", TASKS),
        FluxEngineConfig(),
        records,
        JobQueue(complete=True),
        post=lambda action: action(),
    )


def submitted(held: HeldAllocations, directory: Path) -> HeldTask:
    task = held.submit(TWO, "app", "task", directory, (0, 0), {})
    held.review()
    return task


def allocate(host: HostRecord) -> None:
    host.future._set_event(EventLogEvent.now("alloc", annotations={}))


def test_a_cancel_is_repeated_when_the_connection_broke(held, launcher, tmp_path):
    task = submitted(held, tmp_path)
    (host,) = launcher.hosts
    allocate(host)
    held.received(host.host_id, b"hello", [])
    held.review()
    task.cancel(7, "why")
    assert [frames[0] for frames in launcher.sent] == [b"task", b"cancel"]
    held.received(host.host_id, b"hello", [])
    assert launcher.sent[2:] == [(b"stop",), (b"cancel", b"task", b"why")]


def test_a_task_that_became_a_job_of_its_own_is_not_recorded_as_a_hosts(held, launcher, tmp_path):
    given: list[str] = []
    held._records.given = lambda task_id, *_: given.append(task_id)
    submitted(held, tmp_path).set_urgency(0, 20)
    other = held.submit(TWO, "app", "other", tmp_path, (0, 0), {})
    (host,) = launcher.hosts
    allocate(host)
    held.received(host.host_id, b"hello", [])
    held.review()
    assert given == ["other"]
    assert other.future.running()


def test_tasks_do_not_wait_for_a_host_that_does_not_start(held, launcher, tmp_path):
    task = submitted(held, tmp_path)
    (host,) = launcher.hosts
    allocate(host)
    task.since -= 3600.0
    assert held.review() <= START_TIMEOUT
    assert not task.future.done()
    host.since -= 3600.0
    held.review()
    assert isinstance(task.future.exception(0), DeclinedError)
    assert launcher.cancelled == [host]


def test_a_host_has_some_time_to_end_after_its_task(held, launcher, tmp_path):
    submitted(held, tmp_path)
    (host,) = launcher.hosts
    allocate(host)
    held.received(host.host_id, b"hello", [])
    held.review()
    held.received(host.host_id, b"hello", [])  # it takes no more tasks
    host.since -= 3600.0
    end = ends.HeldEnd([EventLogEvent.now("finish", status=0)], [])
    held.received(host.host_id, b"ended", [b"task", end.dump().encode()])
    assert held.review() > 0
    assert not launcher.cancelled


def test_an_end_on_disk_does_not_wait_for_the_next_task_of_its_host(held, tmp_path):
    ends.write(tmp_path, ends.HeldEnd([EventLogEvent.now("finish", status=3 << 8)], []))
    task = held.recover("task", tmp_path, (0, 0), 7)
    assert task.future.result(0) == 3
    assert held.counters() == {"held_allocations": 0}


def test_a_host_that_can_not_be_followed_is_ended_and_its_task_does_not_run_again(
    held, backend, launcher, tmp_path
):
    task = submitted(held, tmp_path)
    (host,) = launcher.hosts
    allocate(host)
    held.received(host.host_id, b"hello", [])
    held.review()
    host.future.set_exception(OSError("no more events"))
    assert backend.cancelled == [7]
    assert isinstance(task.future.exception(0), JobException)
    assert held.counters() == {"held_allocations": 0}


def test_a_host_that_is_lost_with_the_instance_awaits_its_loss(held, backend, launcher, tmp_path):
    task = submitted(held, tmp_path)
    (host,) = launcher.hosts
    allocate(host)
    held.received(host.host_id, b"hello", [])
    held.review()
    backend.is_lost = lambda _: True
    host.future.set_exception(OSError("the instance is gone"))
    assert not task.future.done()
    assert not backend.cancelled


def test_a_message_that_can_not_be_sent_delays_no_other(tmp_path):
    socket = HostSocket(tmp_path, None, spans_hosts=False, on_message=lambda *_: None)
    socket._inbox.append(lambda: 1 // 0)  # handled in the same turn as the next one
    socket.close()


def test_tasks_get_the_job_shell_s_variables_unless_these_connect_other_ranks():
    environment = {"A": "1", "B": "2", "FLUX_X": "3", "PMI_RANK": "0"}
    given = {"A", "FLUX_X"}
    assert variables_for_tasks(environment, given) == {"B": "2", "FLUX_X": "3"}
    with pytest.raises(EngineError, match="PMIX_RANK"):
        variables_for_tasks(environment | {"PMIX_RANK": "0"}, given)


def test_a_host_runs_in_the_python_and_environment_of_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("PALS_RANKID", "1")
    monkeypatch.setenv("UNWANTED", "1")
    jobs: list[Any] = []
    backend: Any = SimpleNamespace(spans_hosts=False, submit=lambda job, **_: jobs.append(job))
    setup = JobSetup({"WANTED": "2", "UNWANTED": None}, "exit 1", "/opt/other/bin/python3")
    launcher = HostLauncher(
        backend, TASKS, setup, tmp_path, address=None, on_message=lambda *_: None
    )
    launcher.launch(TWO)
    launcher.close()
    (job,) = jobs
    environment = job["attributes"]["system"]["environment"]
    assert job["tasks"][0]["command"][0] == "/opt/other/bin/python3"
    assert environment["WANTED"] == "2"
    assert not {"UNWANTED", "PALS_RANKID", "FLUX_ENDPOINT_WORKER_INIT"} & environment.keys()
    assert "WANTED" in HostSettings.load(environment[VARIABLE]).given


def test_hosts_that_wait_for_an_allocation_end_at_the_next_start(tmp_path):
    ended: list[int] = []
    waiting = SimpleNamespace(jobid=7, has_begun=False, mark={"host": "h"})
    backend: Any = SimpleNamespace(
        marked_jobs=lambda *_, **__: [waiting], cancel=lambda jobid, _: ended.append(jobid)
    )
    launcher = HostLauncher(
        backend, TASKS, JobSetup(), tmp_path, address=None, on_message=lambda *_: None
    )
    launcher.clean_up()
    assert ended == [7]
