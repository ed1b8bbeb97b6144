"""The switch of the plugin: what it changes in an environment, and what it doesn't."""

from __future__ import annotations

import json

import pytest
from tests.interop.plugin_world import PLUGIN, PluginEnvironment

pytestmark = pytest.mark.interop

ENGINES = "globus_compute_endpoint.engines"
FOUND = f"{PLUGIN}.engine.FluxEngine"


@pytest.fixture
def environment(plugin_python, tmp_path):
    """An environment with both packages; the plugin is not enabled."""
    return PluginEnvironment(tmp_path / "venv", plugin_python)


@pytest.fixture
def enabled(environment):
    environment.switch("enable")
    return environment


def test_the_engine_is_unknown_until_it_is_enabled(environment):
    said = environment.switch("status", status=1)
    assert "type: FluxEngine         unknown to the official endpoint" in said
    assert "(not there)" in said
    assert "globus-compute-endpoint  4.19." in said


def test_enable_writes_one_file_and_disable_leaves_the_environment_as_it_was(environment):
    before = environment.files()
    assert "Enabled: wrote" in environment.switch("enable")
    during = environment.files()
    assert during.keys() - before.keys() == {"flux_endpoint_globus_compute.pth"}
    assert {name: during[name] for name in before} == before
    assert FOUND in environment.switch("status")
    assert "Enabled" in environment.switch("enable")  # once more does no harm
    assert environment.files() == during
    assert "Disabled: removed" in environment.switch("disable")
    assert environment.files() == before
    assert "It is not enabled." in environment.switch("disable")
    environment.switch("status", status=1)


def test_the_enabled_engine_is_an_attribute_of_the_official_module(enabled):
    program = f"""
import json, {ENGINES} as engines
from globus_compute_endpoint.endpoint.config.utils import load_config_yaml
engine = load_config_yaml("engine: {{type: FluxEngine}}").engine
try:
    load_config_yaml("engine: {{type: FluxEngin}}")
except Exception as error:
    text = str(error)
print(json.dumps([type(engine) is engines.FluxEngine, "FluxEngine" in dir(engines), text,
                  "FluxEngine" in engines.__all__, type(engines.__spec__.loader).__module__]))
"""
    same, listed, text, exported, loader = json.loads(enabled.run("-c", program).stdout)
    assert same
    assert listed
    assert "Valid options are" in text
    assert "FluxEngine" in text
    assert not exported  # `from … import *` brings what it always brought
    assert loader == "_frozen_importlib_external"


def test_the_official_engines_are_what_they_were(enabled):
    program = f"""
import json, sys
import {ENGINES}
from globus_compute_endpoint.endpoint.config.utils import load_config_yaml
engine = load_config_yaml("engine: {{type: ThreadPoolEngine, max_workers: 2}}").engine
try:
    {ENGINES}.Nothing
except AttributeError as error:
    text = str(error)
print(json.dumps([type(engine).__name__, text, f"{PLUGIN}.engine" in sys.modules]))
engine.shutdown()
"""
    kind, text, loaded = json.loads(enabled.run("-c", program).stdout)
    assert kind == "ThreadPoolEngine"
    assert text == f"module '{ENGINES}' has no attribute 'Nothing'"
    assert not loaded


def test_other_programs_of_the_environment_do_not_import_the_plugin(enabled):
    program = "import sys, json; print([m for m in sys.modules if m.startswith('flux_endpoint')])"
    assert enabled.run("-c", program).stdout == "[]\n"


@pytest.mark.parametrize("value", ["off", "0", "no", "False"])
def test_a_variable_disables_the_plugin(enabled, value):
    program = f"import {ENGINES} as e; print(hasattr(e, 'FluxEngine'), 'FluxEngine' in dir(e))"
    off = {"FLUX_ENDPOINT_GLOBUS_COMPUTE": value}
    assert enabled.run("-c", program, **off).stdout == "False False\n"
    assert enabled.run("-c", program).stdout == "True True\n"
    said = enabled.run("-m", PLUGIN, "status", status=1, **off).stdout
    assert "FLUX_ENDPOINT_GLOBUS_COMPUTE turns it off" in said


def test_a_release_with_an_engine_of_that_name_keeps_its_own(enabled):
    program = f"""
import sys, types
from {PLUGIN}.hook import add_name
module = types.ModuleType("engines")
module.FluxEngine = "their own"
add_name(module)
print(module.FluxEngine, hasattr(module, "__getattr__"))
"""
    assert enabled.run("-c", program).stdout == "their own False\n"


def test_the_enabling_file_is_harmless_without_this_package(enabled, official_python, tmp_path):
    other = PluginEnvironment(tmp_path / "other", official_python)
    name = "flux_endpoint_globus_compute.pth"
    (other.packages / name).write_bytes((enabled.packages / name).read_bytes())
    program = f"import {ENGINES} as e; print(hasattr(e, 'FluxEngine'), e.ThreadPoolEngine.__name__)"
    assert other.run("-c", program).stdout == "False ThreadPoolEngine\n"


def test_enabling_requires_the_environment_of_the_official_endpoint(environment, tmp_path):
    import sys

    alone = PluginEnvironment(tmp_path / "alone", sys.executable)
    said = alone.switch("enable", status=1)
    assert "globus-compute-endpoint is not installed in the environment of" in said
    assert "not installed here" in alone.switch("status", status=1)
