"""Whichever comes first: tasks that are ended, and engines that are stopped, in mid-change."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from decimal import Decimal

import pytest
from engine_world import PATIENCE, World, fresh_seconds, processes

from flux_endpoint.engine import engine
from flux_endpoint.engine.jobs.runner import JobRunner
from flux_endpoint.engine.local.future import LocalExecutorFuture
from flux_endpoint.functions import ShellFunction
from waiting import until

ONE = {"num_ranks": 1}


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.delenv("FLUX_URI", raising=False)
    world = World("local", tmp_path, local_cores_per_node=2, min_nodes=0)
    yield world
    world.stop()


def double(x):
    return 2 * x


def stopper(world: World) -> threading.Thread:
    return threading.Thread(target=world.stop, daemon=True)


def finish(thread: threading.Thread, seconds: str) -> None:
    """Wait until the engine has stopped, and its `sleep` with it."""
    thread.join(PATIENCE)
    left = processes(seconds)
    for process in left:
        process.kill()
    assert not thread.is_alive(), "the engine hangs"
    assert not left


def test_an_engine_stops_while_a_job_is_being_submitted(world, monkeypatch):
    set_jobid, cancel_all = LocalExecutorFuture._set_jobid, JobRunner._cancel_all
    begun, stopping = threading.Event(), threading.Event()

    def set_late(self, *args):
        begun.set()
        assert stopping.wait(PATIENCE)
        set_jobid(self, *args)

    def cancel_early(self, *args):
        cancel_all(self, *args)
        stopping.set()

    monkeypatch.setattr(LocalExecutorFuture, "_set_jobid", set_late)
    monkeypatch.setattr(JobRunner, "_cancel_all", cancel_early)
    seconds = fresh_seconds()
    task = world.submit(ShellFunction(f"sleep {seconds}"), spec=ONE)
    assert begun.wait(PATIENCE)
    stops = stopper(world)
    stops.start()
    finish(stops, seconds)
    assert not world.has_ended(task)


def test_jobs_cancelled_by_the_stop_of_the_engine_have_no_result(world, monkeypatch):
    seconds = fresh_seconds()
    task = world.submit(ShellFunction(f"sleep {seconds}"), spec=ONE)
    until(lambda: processes(seconds))
    jobs, stops = world.engine._jobs, stopper(world)
    post = jobs._thread.post

    def post_slowly(message):
        """Whoever stops the engine is slow to go on after each message."""
        posted = post(message)
        if threading.current_thread() is stops:
            time.sleep(0.5)
        return posted

    monkeypatch.setattr(jobs._thread, "post", post_slowly)
    stops.start()
    finish(stops, seconds)
    assert not world.has_ended(task)


def test_a_message_that_can_not_be_processed_blocks_no_other(world, caplog):
    def fail():
        raise ZeroDivisionError("on purpose")

    world.engine._pool._tell(fail)
    assert world.call(double, 1).value == 2
    assert "on purpose" in caplog.text


def test_the_status_is_available_while_the_engine_stops(world, monkeypatch):
    def after_the_stop(resources):
        world.stop()
        return asdict(resources)

    monkeypatch.setattr(engine, "asdict", after_the_stop)
    assert world.engine.status()["executor"] == "local"
    assert world.engine.status()["executor"] is None


def test_events_are_in_order_even_if_a_job_is_followed_late(world, monkeypatch):
    follow, over = JobRunner._follow, threading.Event()

    def follow_late(self, job):
        job.future.add_event_callback("clean", lambda *_: over.set())
        assert over.wait(PATIENCE)
        follow(self, job)

    monkeypatch.setattr(JobRunner, "_follow", follow_late)
    task = world.submit(ShellFunction("true"), spec=ONE)
    world.event(task, "clean")
    stamps = [event.timestamp for event in world.events]
    assert stamps == sorted(stamps)
    assert world.end(task).value.returncode == 0


def test_a_job_ended_while_its_command_is_formatted_stays_ended(world, monkeypatch):
    cancel_job, seconds = world.engine._jobs.cancel, fresh_seconds()

    def cancel_slowly(task_id, signum):
        cancel_job(task_id, signum)
        until(lambda: world.has_ended(task_id) or world.event_names(task_id))

    monkeypatch.setattr(world.engine._jobs, "cancel", cancel_slowly)
    # Its argument is Python's, so a worker puts it into the command.
    task = world.submit(ShellFunction("sleep {s}"), s=Decimal(seconds), spec=ONE)
    world.engine.cancel(task)
    assert world.end(task).code == "TaskCancelled"
    assert not processes(seconds)
