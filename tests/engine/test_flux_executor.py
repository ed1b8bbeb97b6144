"""A job whose events break off is followed to its end: on a real Flux, with failing bindings.

The tests with `watches` are for instances that do not stream the events of all jobs to us.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from engine_world import PATIENCE, World, fresh_seconds, processes

from flux_endpoint.engine import flux_executor, flux_journal
from flux_endpoint.engine.flux_backend import FluxBackend
from flux_endpoint.engine.flux_executor import FollowingExecutor
from flux_endpoint.engine.lifeline import is_gone
from flux_endpoint.functions import ShellFunction
from flux_endpoint.protocol.job_events import IN_ORDER
from flux_endpoint.protocol.states import ErrorCode
from waiting import until

pytestmark = pytest.mark.flux

ON_FLUX = pytest.mark.parametrize("kind", ["flux"], indirect=True)
ONE = {"num_ranks": 1}


class BrokenWatches:
    """Has Flux's bindings fail where a watch gets an event, as they do on a busy machine.

    Attributes:
        event: the name of the event that a watch fails at; `None`: none.
        times: how often yet.
        failed: how often so far.
    """

    def __init__(self, patch: pytest.MonkeyPatch, flux: Any) -> None:
        self.event: str | None = None
        self.times = 0
        self.failed = 0
        future = __import__("flux.job.event", fromlist=["event"]).JobEventWatchFuture
        get = future.watch_get

        def watch_get(watch: Any, handle: Any) -> Any:
            event = get(watch, handle)
            if event is not None and event.name == self.event and self.times > 0:
                self.times -= 1
                self.failed += 1
                raise OSError(errno.EEXIST, "EEXIST: File exists")
            return event

        patch.setattr(future, "watch_get", watch_get)

    def fail(self, event: str, times: int) -> None:
        self.event, self.times, self.failed = event, times, 0


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch, flux_module: Any) -> BrokenWatches:
    monkeypatch.setattr(flux_executor, "DELAYS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(flux_journal, "JOURNAL", "job-manager.no-such-service")
    return BrokenWatches(monkeypatch, flux_module)


@pytest.fixture
def executor(flux_module: Any, flux_uri: str) -> Iterator[FollowingExecutor]:
    inner = flux_module.job.FluxExecutor(poll_interval=0.01, handle_args=(flux_uri,))
    with FollowingExecutor(inner, is_gone) as executor:
        yield executor


def jobspec(*command: str) -> str:
    core = {"type": "core", "count": 1}
    slot = {"type": "slot", "count": 1, "label": "task", "with": [core]}
    task = {"command": list(command), "slot": "task", "count": {"per_slot": 1}}
    system = {"duration": 0, "cwd": "/", "environment": {"PATH": "/usr/bin:/bin"}}
    return json.dumps(
        {
            "version": 1,
            "resources": [slot],
            "tasks": [task],
            "attributes": {"system": system},
        }
    )


class Events:
    """All events of a future, and the last of them."""

    def __init__(self, future: Any) -> None:
        self.names: list[str] = []
        self._clean = threading.Event()
        for name in IN_ORDER:
            future.add_event_callback(name, self._add)

    def _add(self, _: Any, event: Any) -> None:
        self.names.append(event.name)
        if event.name == "clean":
            self._clean.set()

    def all(self) -> list[str]:
        assert self._clean.wait(PATIENCE), self.names
        return self.names


@pytest.mark.parametrize("event", ["submit", "alloc", "start", "finish", "free", "clean"])
def test_a_watch_that_fails_at_an_event_loses_none(executor, watches, event):
    watches.fail(event, times=2)
    future = executor.submit(jobspec("sh", "-c", "exit 3"))
    events = Events(future)
    assert future.result(PATIENCE) == 3
    names = events.all()
    assert watches.failed == 2
    assert len(names) == len(set(names)), "an event was told twice"
    assert {"submit", "alloc", "start", "finish", "free"} <= set(names)
    assert executor.submit(jobspec("true")).result(PATIENCE) == 0  # its thread lives


def test_a_job_that_failed_ends_with_its_own_exception(executor, watches):
    watches.fail("exception", times=2)
    error = executor.submit(jobspec("/no-such-program")).exception(PATIENCE)
    assert error.type == "exec"
    assert watches.failed == 2


def test_an_attached_job_is_followed_as_well(executor, watches):
    jobid = executor.submit(jobspec("sh", "-c", "exit 4")).jobid(PATIENCE)
    watches.fail("finish", times=1)
    assert executor.attach(jobid).result(PATIENCE) == 4
    assert isinstance(executor.attach(1).exception(PATIENCE), ValueError)


def test_a_watch_that_keeps_failing_is_given_up(executor, watches):
    watches.fail("start", times=10**6)
    future = executor.submit(jobspec("true"))
    attached = []
    attach = future._attach
    future._attach = lambda jobid: attached.append(jobid) or attach(jobid)
    assert isinstance(future.exception(PATIENCE), FileExistsError)
    assert attached == [future.jobid()] * len(flux_executor.DELAYS)
    watches.times = 0


@ON_FLUX
def test_a_task_ends_as_its_job_although_its_watch_fails(make_world, watches):
    world: World = make_world(min_nodes=0)
    watches.fail("start", times=2)
    task = world.submit(ShellFunction("echo out; exit 5"), spec=ONE)
    result = world.end(task).value
    assert (result.returncode, result.stdout) == (5, "out\n")
    assert watches.failed == 2
    assert world.event_names(task).count("start") == 1


@ON_FLUX
def test_a_job_that_cannot_be_followed_is_cancelled_and_lost(make_world, watches):
    seconds = fresh_seconds()
    world = make_world(max_retries_on_system_failure=1)
    watches.fail("start", times=10**6)
    task = world.submit(ShellFunction(f"sleep {seconds}"), spec=ONE)
    end = world.end(task)
    watches.times = 0
    assert end.code == ErrorCode.WORKER_LOST
    assert end.text.count("the job can't be followed any more: ") == 2
    until(lambda: not processes(seconds))


@ON_FLUX
def test_workers_are_not_given_up_when_the_watch_of_their_job_fails(
    make_world, watches, monkeypatch
):
    jobs = []
    submit = FluxBackend.submit

    def counted(backend, *args, **options):
        jobs.append(args)
        return submit(backend, *args, **options)

    monkeypatch.setattr(FluxBackend, "submit", counted)
    world = make_world()
    watches.fail("start", times=1)
    assert world.call(ShellFunction("echo hi")).value.stdout == "hi\n"
    assert watches.failed == 1
    assert len(jobs) == 1
