"""`examples/site/`: one command each, on a real Flux of four nodes."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
from site_world import PATIENCE, PLUGINS, ROOT, Site

from flux_endpoint import Executor, ShellFunction
from waiting import until

pytestmark = [pytest.mark.flux, pytest.mark.rabbitmq]
EXAMPLES = ROOT / "examples" / "site"
WORK = str(EXAMPLES / "work.py")


def lines(name):
    return [
        f"{name}: 100 functions, the sum of their squares is 328350",
        f"{name}: an MPI job, ranks 0, 1, 2, 3",
    ]


@pytest.fixture(scope="module")
def uri(site, start_instance):
    for name in ("lab", "left", "right"):
        site.configure(name)
    return start_instance(site, size=4)


@pytest.fixture(scope="module")
def patient_uri(site, start_instance):
    """What is cancelled there has the time for its end that a busy machine needs."""
    site.configure("server")
    return start_instance(site, '[exec]\nkill-timeout = "5m"\n', size=2)


def flux_in(site, uri):
    def run(*arguments):
        return site.run("flux", *arguments, uri=uri, FLUX_CLI_PLUGINPATH=str(PLUGINS / "cli"))

    return run


@pytest.fixture
def flux(site, uri):
    return flux_in(site, uri)


def test_a_batch_job_with_its_endpoint(flux, site):
    jobid = flux("batch", "-N4", "--endpoint=lab", "--output=out", WORK, "lab").strip()
    flux("job", "attach", jobid)
    said = (site.directory / "out").read_text()
    assert [line for line in said.splitlines() if line.startswith("lab: ")] == lines("lab")
    assert site.status("lab") == "stopped"


def test_an_allocation_with_its_endpoint(flux, site):
    assert flux("alloc", "-N4", "--endpoint=lab", WORK, "lab").splitlines() == lines("lab")
    assert site.status("lab") == "stopped"


def test_two_endpoints_in_nested_instances_of_one_allocation(flux, site):
    said = flux("alloc", "-N4", str(EXAMPLES / "nested.sh")).splitlines()
    assert sorted(said) == sorted(lines("left") + lines("right"))
    assert (site.status("left"), site.status("right")) == ("stopped", "stopped")


def test_an_endpoint_on_a_login_node_with_blocks_of_its_own(site, uri):
    said = site.run(str(EXAMPLES / "blocks.sh"), uri=uri)
    assert [line for line in said.splitlines() if line.startswith("login: ")] == lines("login")
    assert re.search("(?m)^ƒ.* flux-endpoint-block, 2 nodes, RUN$", said)
    assert site.status("login") == "stopped"
    assert "flux-endpoint-block" not in site.run("flux", "jobs", "--format={name}", uri=uri)


@pytest.mark.usefixtures("as_user")
def test_a_killed_endpoint_finds_its_block_and_the_job_in_it_again(site, uri, tmp_path):
    site.configure("again", engine={"executor": "flux", "blocks": {"walltime": "5m"}})
    site.endpoint("start", "again", "--detach", uri=uri)
    count, gate = tmp_path / "count", tmp_path / "gate"
    command = f"echo run >> {count}; while [ ! -e {gate} ]; do sleep 0.05; done; echo finished"
    with Executor(endpoint_id=site.endpoint_id("again")) as executor:
        executor.resource_specification = {"num_nodes": 1}
        future = executor.submit(ShellFunction(command))
        until(count.exists, PATIENCE)
        (listed,) = [e for e in json.loads(site.endpoint("list", "--json")) if e["name"] == "again"]
        os.kill(listed["pid"], signal.SIGKILL)
        site.wait_for("again", "stopped")
        site.endpoint("start", "again", "--detach", uri=uri)
        gate.touch()
        assert future.result(PATIENCE).stdout == "finished\n"
    assert count.read_text() == "run\n"
    site.endpoint("stop", "again")
    assert "flux-endpoint-block" not in site.run("flux", "jobs", "--format={name}", uri=uri)


@pytest.mark.usefixtures("as_user")
def test_an_allocation_that_serves_until_it_is_cancelled(site, patient_uri):
    """What is submitted from elsewhere: `flux batch … --endpoint=lab --wrap sleep inf`."""
    flux = flux_in(site, patient_uri)
    jobid = flux(
        "batch", "-N2", "-t1h", "--endpoint=server", "--output=served", "--wrap", "sleep", "inf"
    ).strip()
    site.wait_for("server", "running")
    with Executor(endpoint_id=site.endpoint_id("server")) as executor:
        said = executor.submit(ShellFunction("echo from the allocation")).result(PATIENCE)
    assert said.stdout == "from the allocation\n"
    flux("cancel", jobid)
    flux("job", "wait-event", jobid, "clean")
    assert site.status("server") == "stopped"


@pytest.mark.stack
def test_a_laptop_with_everything_on_it(tmp_path):
    laptop = Site(tmp_path)
    said = laptop.run("flux", "start", "--test-size=4", str(EXAMPLES / "laptop.sh"))
    assert [line for line in said.splitlines() if line.startswith("laptop: ")] == lines("laptop")
    assert laptop.status("laptop") == "stopped"
