"""`type: FluxEngine` as a part of the official endpoint's configuration."""

from __future__ import annotations

import json

import pytest
from tests.interop.plugin_world import PLUGIN

pytestmark = pytest.mark.interop

LOAD = """
import json, sys
from globus_compute_endpoint.endpoint.config.utils import load_config_yaml, get_config
def load(text):
    try:
        return load_config_yaml(text)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


@pytest.fixture
def loaded(environment):
    """Loads engine blocks as the official endpoint does; returns what comes of each."""

    def load(*blocks):
        texts = [json.dumps({"engine": {"type": "FluxEngine", **block}}) for block in blocks]
        program = LOAD + "print(json.dumps([str(load(text)) for text in json.load(sys.stdin)]))"
        done = environment.run("-c", program.replace("json.load(sys.stdin)", repr(texts)))
        return json.loads(done.stdout)

    return load


def test_every_option_of_our_own_endpoint_is_one_here_and_is_shown(loaded):
    block = {
        "executor": "local",
        "max_nodes": 3,
        "min_nodes": 0,
        "workers_per_node": 2,
        "idle_timeout": 5.0,
        "working_dir": "w",
        "run_in_sandbox": True,
        "max_retries_on_system_failure": 2,
        "allowed_serializers": ["globus_compute_sdk.*Code", "globus_compute_sdk.*Data"],
        "address": "localhost",
        "local_nodes": 2,
        "local_cores_per_node": 2,
        "local_gpus_per_node": 1,
        "gpus_per_worker": 1,
        "shell_plugin": "never",
        "label": "mine",
        "shutdown_grace": 1.5,
    }
    (text,) = loaded(block)
    for name, value in block.items():
        assert f"{name}={value!r}" in text
    assert text.startswith("UserEndpointConfig(engine=FluxEngine(")
    (text,) = loaded({"max_workers": 3, "min_workers": 0})
    assert text == "UserEndpointConfig(engine=FluxEngine(max_workers=3, min_workers=0))"


def test_the_defaults_are_enough(loaded):
    assert loaded({}) == ["UserEndpointConfig(engine=FluxEngine())"]


def test_a_wrong_option_is_refused_by_name(loaded):
    wrong = {
        "max_node": 1,
        "provider": {"type": "LocalProvider"},
        "max_workers_per_node": 4,
        "max_nodes": -1,
        "nonsense": 1,
    }
    blocks = [{name: value} for name, value in wrong.items()]
    texts = loaded(*blocks, {"max_workers": 1, "max_nodes": 1}, {"blocks": {"max_blocks": 2}})
    assert "max_node is not a FluxEngine option; did you mean 'max_nodes'?" in texts[0]
    assert "provider is not a FluxEngine option: there are no blocks to provide" in texts[1]
    assert "max_workers_per_node is not a FluxEngine option: set workers_per_node" in texts[2]
    assert "max_nodes: Input should be greater than 0, not -1" in texts[3]
    assert "nonsense is not a FluxEngine option; there are address, " in texts[4]
    assert "FluxEngine: max_workers and max_nodes set the same limit in two units" in texts[5]
    assert "blocks is an option of Flux Endpoint's own endpoints only" in texts[6]
    assert all(text.startswith("ClickException: FluxEngine: ") for text in texts)


def test_high_assurance_is_refused_as_not_assessed(environment):
    program = (
        LOAD
        + """
try:
    load("engine: {type: FluxEngine}").engine.assert_ha_compliant()
except ValueError as error:
    print(error)
"""
    )
    assert "not been assessed for High Assurance" in environment.run("-c", program).stdout


@pytest.mark.parametrize("module", [PLUGIN, "globus_compute_endpoint.engines"])
def test_a_config_py_can_use_the_engine(environment, tmp_path, module):
    (tmp_path / "config.py").write_text(f"""
from globus_compute_endpoint.endpoint.config import UserEndpointConfig
from globus_compute_sdk.serialize import DillCode, DillDataBase64
from {module} import FluxEngine

config = UserEndpointConfig(
    display_name="by Python",
    engine=FluxEngine(max_nodes=2, allowed_serializers=[DillCode, DillDataBase64]),
)
""")
    program = (
        LOAD
        + f"""
from pathlib import Path
print(get_config(Path({str(tmp_path)!r})))
"""
    )
    assert environment.run("-c", program).stdout == (
        "UserEndpointConfig(display_name='by Python', engine=FluxEngine(max_nodes=2, "
        "allowed_serializers=['globus_compute_sdk.serialize.concretes.DillCode', "
        "'globus_compute_sdk.serialize.concretes.DillDataBase64']))\n"
    )
