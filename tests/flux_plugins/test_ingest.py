"""Job ingest on a real Flux: the site's defaults and limits, as a user meets them."""

from __future__ import annotations

import json
import os

import pytest
from site_world import PATIENCE, PLUGINS

from flux_endpoint import Executor, ShellFunction
from flux_endpoint.engine.jobspec import JobRequest, build_jobspec
from flux_endpoint.errors import TaskExecutionFailed

pytestmark = pytest.mark.flux

LOADED = f"""
[ingest.frobnicator]
plugins = ["{PLUGINS}/ingest/frobnicator.py", "defaults", "constraints"]
[ingest.validator]
plugins = ["jobspec", "{PLUGINS}/ingest/validator.py"]
"""
RULES = """
[queues.batch]
[queues.debug]
[flux-endpoint.tasks]
queue = "batch"
bank = "science"
duration = "5m"
queues = ["batch"]
max-nodes = 1
max-duration = "10m"
[flux-endpoint.workers]
queue = "debug"
"""


@pytest.fixture(scope="module")
def uri(site, start_instance):
    """An instance with rules for endpoints' jobs, and an endpoint in it."""
    uri = start_instance(site, LOADED + RULES, size=2)
    site.run("flux", "queue", "start", "--all", uri=uri)
    site.configure("lab", engine={"type": "FluxEngine", "executor": "flux", "max_nodes": 1})
    site.endpoint("start", "lab", "--detach", uri=uri)
    yield uri
    site.endpoint("stop", "lab")


@pytest.fixture
def executor(uri, as_user):
    with Executor(endpoint_id=as_user.endpoint_id("lab")) as executor:
        yield executor


def system_of(site, uri, jobid):
    jobspec = json.loads(site.run("flux", "job", "info", str(int(jobid)), "jobspec", uri=uri))
    return jobspec["attributes"]["system"]


@pytest.mark.rabbitmq
class TestSite:
    def test_a_task_gets_the_sites_defaults(self, executor, site, uri):
        executor.resource_specification = {"num_ranks": 1}
        future = executor.submit(ShellFunction("true"))
        assert future.result(PATIENCE).returncode == 0
        system = system_of(site, uri, future.jobid())
        assert (system["queue"], system["bank"], system["duration"]) == ("batch", "science", 300)

    @pytest.mark.parametrize(
        ("resources", "sentence"),
        [
            ({"num_nodes": 2}, "at most 1 node, this one asks for 2 (num_nodes)"),
            ({"walltime": "1h"}, "a walltime of at most 10m, this one asks for 1h"),
            ({"queue": "debug"}, 'only the queue batch, this one asks for "debug"'),
        ],
        ids=["nodes", "walltime", "queue"],
    )
    def test_a_rejection_reaches_the_future_as_a_sentence(self, executor, resources, sentence):
        executor.resource_specification = {"num_nodes": 1, **resources}
        with pytest.raises(TaskExecutionFailed) as caught:
            executor.submit(ShellFunction("true")).result(PATIENCE)
        beginning = "Flux refused the job: this site allows a job of an endpoint"
        assert str(caught.value).strip() == f"{beginning} {sentence}"

    def test_resident_workers_have_rules_of_their_own(self, executor, site, uri):
        assert executor.submit(ShellFunction("echo here")).result(PATIENCE).stdout == "here\n"
        jobs = site.run("flux", "jobs", "-no", "{name} {queue}", uri=uri)
        assert "flux-endpoint-workers debug" in jobs

    def test_jobs_of_others_are_not_checked(self, site, uri):
        said = site.run("flux", "run", "-N1", "-q", "debug", "-t", "1h", "echo", "ran", uri=uri)
        assert said == "ran\n"


def test_a_wrong_table_stops_endpoints_jobs_alone_and_says_why(bare_site):
    marked = JobRequest(
        command=["true"], cwd="/", environment=dict(os.environ), mark={"kind": "task"}
    )
    path = bare_site.directory / "jobspec.json"
    path.write_text(json.dumps(build_jobspec(marked)))
    wrong = "[flux-endpoint.tasks]\nmax-node = 3\n"
    with bare_site.instance(LOADED + wrong) as uri:
        said = bare_site.run("flux", "job", "submit", str(path), uri=uri, fails=True)
        assert "flux-endpoint.tasks.max-node is unknown, did you mean max-nodes?" in said
        assert bare_site.run("flux", "run", "echo", "ran", uri=uri) == "ran\n"
