"""A script for the official SDK runs with the package's name changed in its imports."""

from __future__ import annotations

import importlib
import json
import subprocess

import pytest

import flux_endpoint
from flux_endpoint.client.api import user_runtime

#: Modules that scripts import from, and what.
NAMES = {
    "": ["Client", "Executor", "MPIFunction", "ShellFunction", "ShellResult"],
    ".errors": [
        "ComputeError",
        "DeserializationError",
        "SerdeError",
        "SerializationError",
        "TaskExecutionFailed",
        "TaskPending",
    ],
    ".sdk.asynchronous.compute_future": ["ComputeFuture"],
    ".sdk.batch": ["Batch"],
    ".sdk.client": ["Client"],
    ".sdk.executor": ["Executor"],
    ".sdk.mpi_function": ["MPIFunction"],
    ".sdk.shell_function": ["ShellFunction", "ShellResult"],
    ".serialize": ["ComputeSerializer"],
    ".serialize.base": ["ComboSerializationStrategy", "SerializationStrategy"],
    ".serialize.concretes": [
        "DEFAULT_STRATEGY_CODE",
        "DEFAULT_STRATEGY_DATA",
        "AllCodeStrategies",
        "AllDataStrategies",
        "CombinedCode",
        "DillCode",
        "DillCodeSource",
        "DillCodeTextInspect",
        "DillDataBase64",
        "JSONData",
        "PickleCode",
        "PureSourceDill",
        "PureSourceTextInspect",
    ],
    ".serialize.facade": ["AllowlistWildcard", "ComputeSerializer", "validate_strategylike"],
}


@pytest.mark.parametrize("module", NAMES)
def test_each_module_has_its_names(module):
    found = importlib.import_module("flux_endpoint" + module)
    for name in NAMES[module]:
        assert getattr(found, name) is not None


def test_the_sdk_names_refer_to_the_classes_of_the_package():
    module = importlib.import_module("flux_endpoint.sdk.executor")
    assert module.Executor is flux_endpoint.Executor
    module = importlib.import_module("flux_endpoint.sdk.shell_function")
    assert module.ShellFunction is flux_endpoint.ShellFunction


@pytest.mark.interop
def test_the_official_package_has_these_names_there(official_python):
    program = (
        "import importlib, json, sys\n"
        "for module, names in json.loads(sys.argv[1]).items():\n"
        "    for name in names:\n"
        "        getattr(importlib.import_module('globus_compute_sdk' + module), name)\n"
    )
    subprocess.run([official_python, "-c", program, json.dumps(NAMES)], check=True, timeout=60)


@pytest.mark.interop
def test_a_submission_says_the_official_releases_that_ours_is_compatible_with(official_python):
    program = (
        "import globus_compute_sdk, globus_sdk, json\n"
        "from globus_compute_sdk.sdk.batch import create_user_runtime\n"
        "from dataclasses import asdict\n"
        "print(json.dumps(asdict(create_user_runtime())))"
    )
    said = subprocess.run(
        [official_python, "-c", program], check=True, timeout=60, capture_output=True, text=True
    )
    theirs, ours = json.loads(said.stdout), user_runtime()
    for name in ("globus_compute_sdk_version", "globus_sdk_version"):
        assert ours[name] == theirs[name]
    assert theirs.keys() <= ours.keys()
    for part in ("python", "platform"):
        assert theirs[part].keys() == ours[part].keys()
