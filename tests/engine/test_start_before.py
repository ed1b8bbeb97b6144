"""A task that must be started before some moment is started before it, or not at all."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from engine_world import PATIENCE, End, buffer_of

from flux_endpoint.engine import FluxEngine, FluxEngineConfig
from flux_endpoint.engine.base import EngineTask
from waiting import until


def double(x):
    return 2 * x


def wait_for(directory):
    import pathlib
    import time

    (pathlib.Path(directory) / "begun").touch()
    while not (pathlib.Path(directory) / "gate").exists():
        time.sleep(0.01)


class Told:
    """An engine on the embedded executor with one core, and what it said."""

    def __init__(self, directory):
        self._changed = threading.Condition()
        self._said = {}
        config = FluxEngineConfig(executor="local", local_cores_per_node=1)
        self.engine = FluxEngine(config, endpoint_id=str(uuid.UUID(int=7)), directory=directory)
        self.engine.start(
            lambda result: self._say(result.task_id, End(result.body)), on_left=self._say
        )

    def _say(self, task_id, what):
        with self._changed:
            assert task_id not in self._said
            self._said[task_id] = what
            self._changed.notify_all()

    def submit(self, function, *args, spec=None, before=None, attempts=()):
        task_id = str(uuid.uuid4())
        buffer = buffer_of(function, *args)
        task = EngineTask(task_id, task_id, buffer, spec, start_before=before)
        self.engine.submit(task, attempts)
        return task_id

    def said(self, task_id):
        with self._changed:
            assert self._changed.wait_for(lambda: task_id in self._said, PATIENCE)
        return self._said[task_id]


@pytest.fixture
def told(tmp_path, monkeypatch):
    monkeypatch.delenv("FLUX_URI", raising=False)
    told = Told(tmp_path)
    yield told
    told.engine.stop(0)


SPECS = pytest.mark.parametrize("spec", [None, {"num_ranks": 1}], ids=["worker", "job"])


@SPECS
def test_a_task_before_its_start_deadline_runs(told, spec):
    end = told.said(told.submit(double, 2, spec=spec, before=time.time() + 3600))
    assert end.value == ([4] if spec else 4)


@SPECS
def test_a_task_after_its_start_deadline_is_returned_with_its_attempts(told, spec):
    attempts = ["the node was lost"]
    assert told.said(told.submit(double, 2, spec=spec, before=1.0, attempts=attempts)) == attempts


def test_a_task_whose_start_deadline_passes_behind_another_is_returned(told, tmp_path):
    running = told.submit(wait_for, str(tmp_path))
    until((tmp_path / "begun").exists)
    late = told.submit(double, 2, before=time.time() + 0.2)
    assert told.said(late) == []
    (tmp_path / "gate").touch()
    assert told.said(running).value is None


def test_a_job_whose_start_deadline_passes_while_it_waits_is_returned(told, tmp_path):
    spec = {"num_ranks": 1}
    running = told.submit(wait_for, str(tmp_path), spec=spec)
    until((tmp_path / "begun").exists)
    late = told.submit(double, 2, spec=spec, before=time.time() + 0.2)
    assert told.said(late) == []
    (tmp_path / "gate").touch()
    assert told.said(running).value == [None]


def test_after_the_request_to_end_nothing_more_is_started(told, tmp_path):
    running = told.submit(wait_for, str(tmp_path))
    until((tmp_path / "begun").exists)
    waiting = told.submit(double, 2)
    told.engine.terminate("the time is over")
    assert told.said(waiting) == []
    end = told.said(running)
    assert end.code == "WorkerLost"
    assert "the time is over" in end.text
    assert told.said(told.submit(double, 2)) == []
