"""Whichever comes first: tasks that are ended, and engines that are stopped, in mid-change."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

import pytest
from engine_world import PATIENCE, World, fresh_seconds, processes, until

from flux_endpoint.engine.local.future import LocalExecutorFuture
from flux_endpoint.functions import ShellFunction

ONE = {"num_ranks": 1}


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.delenv("FLUX_URI", raising=False)
    world = World("local", tmp_path, local_cores_per_node=2, workers_per_node=1)
    yield world
    world.stop()


def stop(world: World) -> None:
    """Stop the engine, which must not take forever."""
    thread = threading.Thread(target=world.stop, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the engine hangs"


def test_an_engine_stops_while_a_job_is_being_submitted(world, monkeypatch):
    set_jobid, begun = LocalExecutorFuture._set_jobid, threading.Event()

    def set_late(self, *args):
        begun.set()
        time.sleep(0.5)
        set_jobid(self, *args)

    seconds = fresh_seconds()
    monkeypatch.setattr(LocalExecutorFuture, "_set_jobid", set_late)
    task = world.submit(ShellFunction(f"sleep {seconds}"), spec=ONE)
    assert begun.wait(PATIENCE)
    try:
        stop(world)
    finally:
        for process in processes(seconds):
            process.kill()
    assert not world.has_ended(task)


def test_what_is_cancelled_because_the_engine_stops_has_no_result(world, monkeypatch):
    seconds = fresh_seconds()
    task = world.submit(ShellFunction(f"sleep {seconds}"), spec=ONE)
    until(lambda: processes(seconds))

    class Inbox:
        """The runner's; what the thread that stops it puts in comes singly."""

        def __init__(self, inbox):
            self.get = inbox.get
            self.put = inbox.put

    jobs = world.engine._jobs
    real: SimpleQueue = jobs._inbox
    jobs._inbox = inbox = Inbox(real)
    jobs._inbox.put(lambda: None)  # ends the runner's wait for the real one
    runner = jobs._thread

    def put(message):
        real.put(message)
        if threading.current_thread() is not runner:
            time.sleep(0.5)

    inbox.put = put
    stop(world)
    assert not world.has_ended(task)


def test_a_job_that_is_ended_while_its_arguments_are_put_in_stays_ended(world, monkeypatch):
    """Its arguments are Python's, so a worker puts them into its command."""
    cancel_job, seconds = world.engine._jobs.cancel, fresh_seconds()

    def cancel_slowly(task_id, signum):
        cancel_job(task_id, signum)
        until(lambda: world.has_ended(task_id) or world.event_names(task_id))

    monkeypatch.setattr(world.engine._jobs, "cancel", cancel_slowly)
    task = world.submit(ShellFunction("sleep {s}"), s=seconds, spec=ONE)
    world.engine.cancel(task)
    assert world.end(task).code == "TaskCancelled"
    assert not processes(seconds)
