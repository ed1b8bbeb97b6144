"""An engine that is killed in the moments around a job: the job runs once all the same."""

from __future__ import annotations

import pytest
from killed_engine import DEATHS
from killing import Endpoint

from flux_endpoint.functions import ShellFunction

pytestmark = pytest.mark.flux

ONE = {"num_nodes": 1}
AROUND_JOBS = [death for death in DEATHS if "block" not in death and "allocation" not in death]


@pytest.fixture
def endpoint(flux_uri, tmp_path, mark, monkeypatch):
    monkeypatch.setenv("FLUX_URI", flux_uri)
    return Endpoint("flux", tmp_path, min_nodes=0)


@pytest.mark.parametrize("moment", AROUND_JOBS)
def test_a_job_runs_once_though_the_engine_is_killed_when(endpoint, moment):
    task = endpoint.add(ShellFunction(f"echo x >> {endpoint.completed}; echo done"), spec=ONE)
    endpoint.await_death(endpoint.start(dies_at=moment))
    if moment == "a result is recorded":
        assert endpoint.end(task).value.stdout == "done\n"
    endpoint.finish(endpoint.start())
    assert endpoint.end(task).value.stdout == "done\n"
    assert endpoint.runs() == {"x": 1}
    assert list((endpoint.directory / "engine" / "jobs").iterdir()) == []
