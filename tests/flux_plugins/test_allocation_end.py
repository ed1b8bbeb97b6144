"""The end of the allocation that an endpoint is in: each task gets its answer, none hangs."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from site_world import COMMAND, PATIENCE, PLUGINS

from flux_endpoint import Executor, MPIFunction, ShellFunction, TaskExecutionFailed
from flux_instance import FluxInstance
from waiting import until

pytestmark = [pytest.mark.flux, pytest.mark.rabbitmq, pytest.mark.usefixtures("as_user")]
ONE_RANK = {"num_nodes": 1, "ranks_per_node": 1}
#: More than an instance of two nodes has left beside a worker.
ALL_NODES = {"num_nodes": 2, "ranks_per_node": 1, "exclusive": True}


@pytest.fixture(scope="module")
def lab(site):
    engine = {"max_nodes": 1, "workers_per_node": 1}
    return site.configure("lab", engine=engine, shutdown_grace=20)


@contextmanager
def endpoint_in(site, instance):
    """An endpoint as a process of its own, in an instance."""
    with subprocess.Popen(
        [*COMMAND, "start", "lab"],
        env={**site.environment, "FLUX_URI": instance.uri},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


class Blocked:
    """A command that says when it runs, and goes on when it is let go."""

    def __init__(self, directory: Path, name: str) -> None:
        self._started, go = directory / f"{name}-started", directory / f"{name}-go"
        os.mkfifo(go)
        self._go = os.open(go, os.O_RDWR)  # whether anybody reads or not
        self.text = f"touch {self._started}; read line < {go}; echo finished"

    def await_start(self) -> None:
        until(self._started.exists)

    def let_go(self) -> None:
        os.write(self._go, b"\n" * 9)  # one for each time that it runs

    def close(self) -> None:
        os.close(self._go)


@pytest.fixture
def blocked(tmp_path):
    """A command for a worker, and one for a job."""
    both = Blocked(tmp_path, "worker"), Blocked(tmp_path, "job")
    yield both
    for each in both:
        each.close()


@contextmanager
def running(site, blocked):
    """An executor, and futures of what runs on a worker and as a job."""
    on_worker, as_job = blocked
    executor = Executor(endpoint_id=site.endpoint_id("lab"))
    try:
        futures = [executor.submit(ShellFunction(on_worker.text))]
        on_worker.await_start()
        executor.resource_specification = ONE_RANK
        futures.append(executor.submit(MPIFunction(as_job.text)))
        as_job.await_start()
        yield executor, futures
    except BaseException:  # what has not ended by now may never do so
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def test_when_the_broker_is_killed_every_future_ends_or_is_answered_in_the_next_instance(
    site, lab, blocked
):
    with FluxInstance(2) as first, endpoint_in(site, first) as endpoint:
        site.wait_for("lab", "running")
        with running(site, blocked) as (executor, futures):
            executor.resource_specification = ALL_NODES
            waiting = [executor.submit(MPIFunction("echo ran"))]
            waiting[0].jobid(PATIENCE)
            executor.resource_specification = None
            waiting += [executor.submit(ShellFunction("echo ran")) for _ in range(50)]
            first.kill()
            reason = f"the Flux instance at {first.uri} is gone"
            for future in futures:
                with pytest.raises(TaskExecutionFailed, match=reason):
                    future.result(PATIENCE)
            assert endpoint.stderr is not None
            assert reason in endpoint.stderr.read()
            assert endpoint.wait(PATIENCE) == 75
            with FluxInstance(2) as second, endpoint_in(site, second):
                assert waiting.pop(0).result(PATIENCE).stdout == "ran\n" * 2
                assert [each.result(PATIENCE).stdout for each in waiting] == ["ran\n"] * 50


def batch(site, uri):
    """Submit an allocation with the endpoint; return its job id when the endpoint runs."""
    search = {"FLUX_CLI_PLUGINPATH": str(PLUGINS / "cli")}
    command = ["flux", "batch", "-N1", "-t2h", "--endpoint=lab", "--wrap", "sleep", "inf"]
    jobid = site.run(*command, uri=uri, **search).strip()
    site.wait_for("lab", "running")
    return jobid


def cancel(site, uri, jobid, log):
    """Cancel an allocation; return when its endpoint knows."""
    before = log.read_text().count("endpoint stops")
    site.run("flux", "cancel", jobid, uri=uri)
    until(lambda: log.read_text().count("endpoint stops") > before)


def test_a_cancelled_allocation_lets_running_tasks_finish(site, lab, blocked, start_instance):
    uri = start_instance(site, '[exec]\nkill-timeout = "5m"\n', size=2)
    allocation = batch(site, uri)
    with running(site, blocked) as (_, futures):
        ends = re.compile(r"^Flux .*, ends in (2|1\.9\d*)h\b", re.MULTILINE)
        until(lambda: ends.search(site.endpoint("status", "lab")))  # with the next report
        cancel(site, uri, allocation, lab / "endpoint.log")
        for each in blocked:
            each.let_go()
        assert [future.result(PATIENCE).stdout for future in futures] == ["finished\n"] * 2
    site.run("flux", "job", "wait-event", allocation, "clean", uri=uri)
    assert site.status("lab") == "stopped"


def test_tasks_interrupted_by_a_killed_allocation_fail_or_run_again(
    site, lab, blocked, start_instance
):
    uri = start_instance(site, '[exec]\nkill-timeout = "0.5s"\n', size=2)
    allocation = batch(site, uri)
    with running(site, blocked) as (_, futures):
        cancel(site, uri, allocation, lab / "endpoint.log")
        site.wait_for("lab", "stopped")
        for each in blocked:
            each.let_go()
        batch(site, uri)
        for future in futures:
            error = future.exception(2 * PATIENCE)
            if error is None:
                assert future.result().stdout == "finished\n"
            else:
                assert re.search("the Flux instance at .* is gone", str(error))
