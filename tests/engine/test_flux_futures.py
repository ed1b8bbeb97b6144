"""Futures of Flux's bindings end on the thread of their connection: on a real Flux."""

from __future__ import annotations

import concurrent.futures
import gc
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_world import PATIENCE
from test_flux_executor import jobspec

from flux_endpoint.engine import flux_futures
from flux_endpoint.engine.flux_backend import FluxBackend
from waiting import until

pytestmark = pytest.mark.flux


@pytest.fixture
def collector() -> Iterator[None]:
    """Python's collector at work on a thread of its own, all the time."""
    over = threading.Event()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def collect() -> None:
        while not over.wait(0.0002):
            gc.collect(0)

    thread = threading.Thread(target=collect)
    thread.start()
    yield
    over.set()
    thread.join()
    sys.setswitchinterval(interval)


def test_no_answer_is_lost_while_the_collector_runs_elsewhere(backend, collector):
    futures = []
    for number in range(600):
        if number % 3:
            futures.append(backend.executor.attach(1))
        else:
            futures.append(backend.executor.submit(jobspec("true")))
        if number % 7 == 0:
            time.sleep(0.01)

    ended, open_ = concurrent.futures.wait(futures, PATIENCE)

    assert not open_
    errors = [future.exception() for future in ended]
    assert errors.count(None) == 200
    assert all(isinstance(error, ValueError) for error in errors if error is not None)


def test_a_future_ends_with_its_last_answer_and_not_before(backend, flux_module, flux_uri):
    handle = flux_module.Flux(flux_uri)
    answers: list[Any] = []

    def heard(future: Any) -> None:
        answers.append((future, future.get_event()))
        if answers[-1][1] is None:
            handle.reactor_stop()

    jobid = backend.executor.submit(jobspec("true")).jobid(PATIENCE)
    watch = flux_module.job.event_watch_async(handle, jobid)
    flux_futures.then(watch, heard)
    handle.reactor_run()

    names = [event and event.name for _, event in answers]
    assert names[0] == "submit"
    assert names[-2:] == ["clean", None]
    assert watch.pimpl.handle is None


def test_backends_that_are_closed_leave_no_descriptors(flux_uri: str):
    def use_one() -> None:
        lost: list[str] = []
        backend = FluxBackend(flux_uri)
        backend.watch(lost.append, lost.append, lambda demand: None)
        assert backend.executor.submit(jobspec("true")).result(PATIENCE) == 0
        backend.close()

    def descriptors() -> int:
        gc.collect()
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    use_one()
    flux_futures.end_orphans()
    before = descriptors()
    for _ in range(5):
        use_one()

    def closed() -> bool:
        flux_futures.end_orphans()  # as the next backend does
        return descriptors() <= before

    until(closed)


def test_incompatible_flux_bindings_are_reported(backend, flux_module, caplog, monkeypatch):
    flux_futures.mend_executor(flux_module)
    assert not caplog.text
    monkeypatch.setattr(flux_futures, "_WAITING", "_NOT_THERE")
    flux_futures.mend_executor(flux_module)
    assert "the end of a job may be missed" in caplog.text
