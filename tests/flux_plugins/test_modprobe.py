"""Endpoints that start and end with a Flux instance."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from site_world import PATIENCE, PLUGINS

from flux_endpoint import Executor, MPIFunction, ShellFunction

pytestmark = [pytest.mark.flux, pytest.mark.rabbitmq]
SEARCH = {"FLUX_MODPROBE_PATH_APPEND": str(PLUGINS / "modprobe")}
START_LAB = '[flux-endpoint]\nstart = ["lab"]\n'


@pytest.fixture(scope="module")
def lab(site):
    # A core is left for jobs.
    return site.configure("lab", engine={"workers_per_node": 1}, shutdown_grace=20)


def listed(site, name="lab"):
    entries = json.loads(site.endpoint("list", "--json"))
    return next(entry for entry in entries if entry["name"] == name)


def release_when_it_stops(log, fifos):
    """Write to FIFOs when the endpoint's log says that it is being drained."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if log.read_text().count("endpoint stops") > 0:
            for fifo in fifos:
                fifo.write_text("\n")
            return
        time.sleep(0.02)


@pytest.mark.usefixtures("as_user")
def test_an_instance_starts_its_endpoint_and_lets_tasks_finish_at_its_end(site, lab, tmp_path):
    blocked = [(tmp_path / f"{name}-started", tmp_path / f"{name}-go") for name in ("a", "b")]
    for started, go in blocked:
        os.mkfifo(started)
        os.mkfifo(go)
    text = "echo > {started}; read line < {go}; echo finished"
    with site.instance(START_LAB, **SEARCH) as uri:
        entry = listed(site)
        assert (entry["status"], entry["executor"]) == ("running", "flux")
        assert entry["flux_uri"] == uri
        executor = Executor(endpoint_id=site.endpoint_id("lab"))
        futures = []
        for command, (started, go) in zip((ShellFunction, MPIFunction), blocked, strict=True):
            futures.append(executor.submit(command(text), started=str(started), go=str(go)))
            executor.resource_specification = {"num_nodes": 1, "ranks_per_node": 1}
            started.read_text()
        fifos = [go for _, go in blocked]
        thread = threading.Thread(target=release_when_it_stops, args=(lab / "endpoint.log", fifos))
        thread.start()
    thread.join()
    assert [future.result(PATIENCE).stdout for future in futures] == ["finished\n"] * 2
    executor.shutdown()
    assert listed(site)["status"] == "stopped"


def test_the_endpoint_starts_after_late_resource_discovery(site, lab):
    with site.instance(START_LAB, size=3, **SEARCH) as uri:
        site.wait_for("lab", "running")
        assert listed(site)["flux_uri"] == uri
    assert listed(site)["status"] == "stopped"


def test_an_instance_that_ends_before_its_endpoint_has_started_leaves_none(site, lab):
    config = site.directory / "start.toml"
    config.write_text(START_LAB)
    site.run("flux", "start", "--test-size=2", f"--config-path={config}", "true", **SEARCH)
    assert listed(site)["status"] == "stopped"


def test_rc3_stops_endpoints_that_the_cleanup_stage_did_not(site, lab):
    with site.instance(START_LAB, **SEARCH) as uri:
        assert listed(site)["status"] == "running"
        rc3 = PLUGINS / "modprobe" / "rc3.d" / "flux-endpoint.py"
        site.run("flux", "modprobe", "run", str(rc3), uri=uri)
        assert listed(site)["status"] == "stopped"


def test_an_endpoint_that_runs_elsewhere_is_not_stopped(site, lab):
    site.endpoint("start", "lab", "--detach")
    before = listed(site)
    with site.instance(START_LAB, **SEARCH) as uri:
        assert before["flux_uri"] != uri
        assert listed(site) == before
    assert listed(site) == before
    site.endpoint("stop", "lab")


def test_an_endpoint_that_can_not_start_does_not_block_the_instance(site):
    with site.instance('[flux-endpoint]\nstart = "nowhere"\n', **SEARCH) as uri:
        assert site.run("flux", "run", "echo", "ran", uri=uri) == "ran\n"


def test_without_the_configuration_nothing_happens(site, lab):
    with site.instance(**SEARCH):
        assert listed(site)["status"] == "stopped"


def test_a_plugin_installed_twice_starts_the_endpoint_once(site, lab, tmp_path):
    (tmp_path / "etc").symlink_to(PLUGINS / "modprobe")
    twice = f"{PLUGINS / 'modprobe'}:{tmp_path / 'etc'}"
    with site.instance(START_LAB, FLUX_MODPROBE_PATH_APPEND=twice) as uri:
        assert listed(site)["flux_uri"] == uri
    assert listed(site)["status"] == "stopped"
