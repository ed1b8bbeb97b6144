"""`flux batch --endpoint=NAME` and `flux alloc --endpoint=NAME`."""

from __future__ import annotations

import json

import pytest
from site_world import PLUGINS

pytestmark = pytest.mark.flux
SEARCH = {"FLUX_CLI_PLUGINPATH": str(PLUGINS / "cli")}


@pytest.fixture(scope="module")
def uri(site, start_instance):
    site.configure("lab")
    return start_instance(site, size=2)


@pytest.fixture
def flux(site, uri):
    """Runs a command of Flux with the plugin loaded."""

    def run(*arguments, **options):
        return site.run("flux", *arguments, uri=uri, **SEARCH, **options)

    return run


def dry_run(flux, *arguments):
    said = flux("batch", "-N1", *arguments, "--dry-run", "--wrap", "true")
    system = json.loads(said)["attributes"]["system"]
    conf = system["files"].get("conf.json", {}).get("data", {})
    return conf, system["environment"].get("FLUX_MODPROBE_PATH_APPEND", "")


@pytest.mark.rabbitmq
def test_an_allocation_has_its_endpoint_and_instances_within_have_none(flux, site):
    within = "flux start flux config get --default=none flux-endpoint.start"
    outside = "flux getattr local-uri; flux-endpoint list --json"
    said = flux("alloc", "-N1", "--endpoint=lab", "sh", "-c", f"{within}; {outside}")
    nested, uri, listed = said.split("\n", 2)
    (endpoint,) = json.loads(listed)
    assert (endpoint["status"], endpoint["executor"]) == ("running", "flux")
    assert endpoint["flux_uri"] == uri
    assert nested == "none"
    assert site.status("lab") == "stopped"


def test_the_reason_for_a_failed_endpoint_start_is_in_the_jobs_output(flux, site):
    (site.configure("broken") / "config.yaml").write_text("max_in_fligth: 3\n")
    flux("batch", "-N1", "--endpoint=broken", "--output=out", "--wrap", "echo", "ran")
    flux("job", "wait-event", flux("job", "last").strip(), "clean")
    said = (site.directory / "out").read_text()
    assert "max_in_fligth: unknown key" in said
    assert "ran\n" in said


def test_the_endpoint_is_in_the_instances_configuration_beside_the_users_own(flux):
    conf, search = dry_run(flux, "--conf=resource.noverify=true", "--endpoint=lab")
    assert conf == {"resource": {"noverify": True}, "flux-endpoint": {"start": ["lab"]}}
    assert search == str(PLUGINS / "modprobe")


def test_a_search_path_of_the_users_own_is_kept(flux):
    _, search = dry_run(flux, "--env=FLUX_MODPROBE_PATH_APPEND=/mine", "--endpoint=lab")
    assert search == f"/mine:{PLUGINS / 'modprobe'}"


def test_without_the_option_a_job_is_as_it_would_be(flux):
    conf, search = dry_run(flux)
    assert "flux-endpoint" not in conf
    assert search == ""


@pytest.mark.parametrize("name", ["nowhere", "../lab", ""])
def test_an_unknown_endpoint_is_refused_at_once(flux, name):
    said = flux("batch", "-N1", f"--endpoint={name}", "--wrap", "true", fails=True)
    assert "ERROR: --endpoint: " in said
    if name == "nowhere":
        assert "make it with: flux-endpoint configure nowhere" in said


def test_help_names_the_option_where_it_is_and_nowhere_else(flux):
    assert "--endpoint=NAME" in flux("batch", "--help")
    assert "--endpoint=NAME" in flux("alloc", "--help")
    assert "--endpoint" not in flux("run", "--help")
    assert "drained before" in flux("batch", "--help=endpoint")
