"""Jobs that are submitted and followed without FluxExecutor: on a real Flux."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_world import PATIENCE
from test_flux_executor import Events, jobspec

from flux_endpoint.engine import flux_executor, flux_journal
from flux_endpoint.engine.flux_executor import FollowingExecutor
from flux_endpoint.engine.flux_journal import JournalExecutor
from flux_endpoint.engine.lifeline import is_gone
from flux_endpoint.protocol.job_events import EVENTS, IN_ORDER
from flux_endpoint.protocol.jobid import format_jobid
from waiting import until

pytestmark = pytest.mark.flux


class Journal:
    """The stream of events, which breaks off with the next event once `breaks` is set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.breaks = self.is_broken = False
        take = flux_journal._Follower._on_entry

        def on_entry(follower: Any, journal: Any) -> None:
            if not self.breaks:
                take(follower, journal)
                return
            self.is_broken = True
            take(follower, SimpleNamespace(get=self._fail))

        patch.setattr(flux_journal._Follower, "_on_entry", on_entry)

    @staticmethod
    def _fail() -> None:
        raise OSError(errno.ENODATA, "No data available")


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    monkeypatch.setattr(flux_executor, "DELAYS", (0.01, 0.01, 0.01))
    return Journal(monkeypatch)


@pytest.fixture
def executor(flux_module: Any, flux_uri: str) -> Iterator[FollowingExecutor]:
    with FollowingExecutor(JournalExecutor(flux_module, flux_uri), is_gone) as executor:
        yield executor


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, flux_module: Any) -> None:
    """There is no FluxExecutor."""
    monkeypatch.delattr(flux_module.job, "FluxExecutor")


def waiting(directory: Path) -> str:
    return jobspec("sh", "-c", f"until [ -e {directory}/end ]; do sleep 0.05; done; exit 5")


def eventlog(flux_uri: str, jobid: int) -> list[str]:
    """Return an ended job's events. Flux commits them to its store later than it streams them."""

    def flux(*arguments: str) -> str:
        environment = {**os.environ, "FLUX_URI": flux_uri}
        return subprocess.check_output(["flux", *arguments], env=environment, text=True)

    flux("job", "wait-event", format_jobid(jobid), "clean")
    lines = flux("job", "eventlog", format_jobid(jobid)).splitlines()
    names = [line.split()[1] for line in lines]
    return [name for name in names if name in EVENTS]


@pytest.mark.usefixtures("alone")
def test_a_jobs_events_are_those_of_its_eventlog_in_order(executor, flux_uri):
    events, names = [], []
    futures = [executor.submit(jobspec("sh", "-c", f"exit {number}")) for number in range(8)]
    for future in futures:
        mine: list[str] = []
        names.append(mine)
        for name in IN_ORDER:
            future.add_event_callback(name, lambda _, event, mine=mine: mine.append(event.name))
        events.append(Events(future))
    assert [future.result(PATIENCE) for future in futures] == list(range(8))
    for future, seen, mine in zip(futures, events, names, strict=True):
        seen.all()
        assert mine == eventlog(flux_uri, future.jobid())


@pytest.mark.usefixtures("alone")
def test_a_job_that_ends_by_an_exception_has_it(executor):
    future = executor.submit(jobspec("/no-such-program"))
    error = future.exception(PATIENCE)
    assert (error.type, error.severity) == ("exec", 0)
    assert "finish" in Events(future).all()


@pytest.mark.usefixtures("alone")
def test_what_flux_refuses_fails_and_the_next_job_runs(executor):
    refused = executor.submit('{"version": 1}')
    assert isinstance(refused.exception(PATIENCE), OSError)
    with pytest.raises(RuntimeError, match="could not be submitted"):
        refused.jobid(0)
    assert executor.submit(jobspec("true")).result(PATIENCE) == 0


def test_jobs_are_followed_to_their_ends_when_the_stream_breaks_off(journal, executor, tmp_path):
    waits = executor.submit(waiting(tmp_path))
    events = Events(waits)
    until(lambda: "start" in events.names)
    journal.breaks = True
    meanwhile = executor.submit(jobspec("sh", "-c", "exit 6"))
    others = Events(meanwhile)
    assert meanwhile.result(PATIENCE) == 6
    assert journal.is_broken
    (tmp_path / "end").touch()
    assert waits.result(PATIENCE) == 5
    for seen in (events.all(), others.all()):
        assert len(seen) == len(set(seen)), "an event was told twice"
        assert {"submit", "alloc", "start", "finish", "free"} <= set(seen)
    assert executor.submit(jobspec("true")).result(PATIENCE) == 0


def test_a_job_whose_events_were_dropped_before_its_id_was_known_is_attached(
    journal, executor, monkeypatch
):
    monkeypatch.setattr(flux_journal, "MOST_UNKNOWN", 0)
    future = executor.submit(jobspec("sh", "-c", "exit 4"))
    assert future.result(PATIENCE) == 4
    names = Events(future).all()
    assert len(names) == len(set(names))
    assert {"submit", "alloc", "start", "finish", "free"} <= set(names)


@pytest.mark.usefixtures("alone")
def test_a_shutdown_waits_for_the_jobs_and_later_ones_are_refused(flux_module, flux_uri):
    executor = JournalExecutor(flux_module, flux_uri)
    future = executor.submit(jobspec("true"))
    executor.shutdown(wait=True)
    assert future.result(0) == 0
    with pytest.raises(RuntimeError):
        executor.submit(jobspec("true"))


@pytest.mark.usefixtures("alone")
def test_a_shutdown_cancels_what_is_not_submitted_yet(flux_module, flux_uri, monkeypatch):
    may_run = threading.Event()
    woken = flux_journal._Follower._woken

    def later(follower: Any, *args: Any) -> None:
        assert may_run.wait(PATIENCE)
        woken(follower, *args)

    monkeypatch.setattr(flux_journal._Follower, "_woken", later)
    executor = JournalExecutor(flux_module, flux_uri)
    future = executor.submit(jobspec("true"))
    executor.shutdown(wait=False, cancel_futures=True)
    may_run.set()
    executor.shutdown(wait=True)
    assert future.cancelled()


class SilentFlux:
    """A Flux that does not say where its stream of events begins, as releases before 0.58."""

    constants = SimpleNamespace(FLUX_POLLIN=1, FLUX_MSGTYPE_EVENT=2, FLUX_RPC_STREAMING=4)

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.job = SimpleNamespace(FluxExecutor=lambda **_options: self)

    def Flux(self, _uri: str | None) -> SilentFlux:
        return self

    def fd_watcher_create(self, *_arguments: Any) -> Any:
        return nullcontext()

    msg_watcher_create = fd_watcher_create

    def rpc(self, *_arguments: Any, **_options: Any) -> SilentFlux:
        return self

    def then(self, _callback: Any) -> None:
        pass

    def reactor_run(self) -> None:
        self.is_over.wait(PATIENCE)

    def submit(self, what: str) -> str:
        return f"submitted {what}"


def test_only_the_first_job_waits_for_a_stream_that_does_not_begin(monkeypatch):
    monkeypatch.setattr(flux_journal, "_READY_TIMEOUT", 0.01)
    silent: Any = SilentFlux()
    executor = JournalExecutor(silent, None)
    try:
        assert executor.submit("a job") == "submitted a job"
        monkeypatch.setattr(flux_journal, "_READY_TIMEOUT", threading.TIMEOUT_MAX)
        assert executor._follower._ready.is_set()
        assert executor.submit("another") == "submitted another"
    finally:
        silent.is_over.set()
        executor._follower._thread.join(PATIENCE)
