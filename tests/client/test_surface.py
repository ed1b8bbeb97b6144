"""What the official package offers, ours offers by the same names, but for what is listed here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: What ours lacks, and why.
LACKING = {
    "Client.FUNCX_SCOPE": "a scope of Globus Auth; here a token of the service is all",
    "Client.FUNCX_SDK_CLIENT_ID": "a client of Globus Auth",
    "Client.auth_client": "a client of Globus Auth",
    "Client.logout": "there is no login to end: the service takes tokens back",
    "Client.register_endpoint": "endpoints register themselves",
    "Client.version_check": "client and service agree on the wire protocol, not on versions",
    "Client.__init__(environment)": "the service's URL says where it is",
    "Client.__init__(local_compute_services)": "the service's URL says where it is",
    "Client.__init__(app)": "an app of Globus Auth",
    "Client.__init__(authorizer)": "an authorizer of Globus Auth",
    "Client.register_function(ha_endpoint_id)": "high assurance is Globus's",
    "Client.register_source_code(ha_endpoint_id)": "high assurance is Globus's",
    "ShellFunction.execute_cmd_line": "how it runs is the endpoint's affair",
    "ShellFunction.get_and_close_streams": "how it runs is the endpoint's affair",
    "ShellFunction.get_snippet": "how it runs is the endpoint's affair",
    "ShellFunction.open_std_fd": "how it runs is the endpoint's affair",
    "ShellFunction.valid_function_name": "the constructor checks the name",
    "MPIFunction.execute_cmd_line": "how it runs is the endpoint's affair",
    "MPIFunction.get_and_close_streams": "how it runs is the endpoint's affair",
    "MPIFunction.get_snippet": "how it runs is the endpoint's affair",
    "MPIFunction.open_std_fd": "how it runs is the endpoint's affair",
    "MPIFunction.valid_function_name": "the constructor checks the name",
}
#: Accepted among the keyword arguments: ours has no rate to limit.
ACCEPTED = {"Executor.__init__(api_burst_limit)", "Executor.__init__(api_burst_window_s)"}
#: Parameters that take what has no name.
REST = {"args", "kwargs", "registration_kwargs"}
#: Positional only in practice.
POSITIONAL = {"ComputeSerializer.unpack_buffers(packed_buffer)"}

PROGRAM = """
import importlib, inspect, json, sys
package = importlib.import_module(sys.argv[1])
futures = importlib.import_module(sys.argv[2])
batch = importlib.import_module(sys.argv[3])
serialize = importlib.import_module(sys.argv[1] + ".serialize")
classes = {
    "Executor": package.Executor, "Client": package.Client, "ShellFunction": package.ShellFunction,
    "MPIFunction": package.MPIFunction, "ShellResult": package.ShellResult,
    "ComputeFuture": futures.ComputeFuture, "Batch": batch.Batch,
    "ComputeSerializer": serialize.ComputeSerializer,
}
found = {}
for title, cls in classes.items():
    for name in dir(cls):
        if name.startswith("_") and name != "__init__":
            continue
        member = inspect.getattr_static(cls, name)
        parameters = []
        if not isinstance(member, property) and callable(getattr(cls, name)):
            signature = inspect.signature(getattr(cls, name))
            parameters = [p for p in signature.parameters if p != "self"]
        found[title + "." + name] = parameters
names = sorted(getattr(serialize, "__all__", [n for n in dir(serialize) if n[0] != "_"]))
top = sorted(getattr(package, "__all__", []))
print(json.dumps({"members": found, "serialize": names, "package": top}))
"""


def surface(python: str, *modules: str) -> dict:
    answer = subprocess.run(
        [python, "-c", PROGRAM, *modules], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(answer.stdout)


@pytest.fixture(scope="module")
def official(official_python: str) -> dict:
    sdk = "globus_compute_sdk.sdk"
    modules = ("globus_compute_sdk", f"{sdk}.executor", f"{sdk}.batch")
    return surface(official_python, *modules)


@pytest.fixture(scope="module")
def ours() -> dict:
    modules = ("flux_endpoint", "flux_endpoint.client", "flux_endpoint.client.batch")
    return surface(sys.executable, *modules)


@pytest.mark.interop
def test_every_method_attribute_and_argument_is_there_or_listed(official, ours):
    missing = set()
    for name, parameters in official["members"].items():
        if name not in ours["members"]:
            missing.add(name)
            continue
        here = ours["members"][name]
        missing |= {f"{name}({each})" for each in parameters if each not in {*here, *REST}}
    assert missing - ACCEPTED - POSITIONAL == LACKING.keys()


@pytest.mark.interop
def test_all_names_exported_for_serialization_exist(official, ours):
    assert set(official["serialize"]) <= set(ours["serialize"])


@pytest.mark.interop
def test_all_names_exported_by_the_package_exist(official, ours):
    assert set(official["package"]) <= set(ours["package"])
