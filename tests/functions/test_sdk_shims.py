"""Where tasks run, the names of the official command functions are there, installed or not."""

from __future__ import annotations

import subprocess
import sys

import pytest

INSTALL = "from flux_endpoint.functions.sdk_shims import install_stand_ins\ninstall_stand_ins()\n"


def run(program, path=()):
    """Run a program in a Python without the official package; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", INSTALL + program],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(map(str, path))},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_object_that_is_pickled_by_name_arrives_and_returns():
    assert (
        run("""
import dill
from flux_endpoint.functions import ShellFunction, official_code
function = dill.loads(__import__("base64").b64decode(official_code(ShellFunction("echo {x}"))[3:]))
result = function(x="there")
from globus_compute_sdk import MPIFunction, ShellFunction, ShellResult
from globus_compute_sdk.sdk.mpi_function import MPIFunction as Same
from globus_compute_sdk.sdk import shell_function
print(type(function) is ShellFunction, type(result) is ShellResult, Same is MPIFunction)
print(issubclass(MPIFunction, ShellFunction), shell_function.ShellResult is ShellResult)
import pickle
again = dill.loads(dill.dumps([result]))[0], pickle.loads(pickle.dumps(result))
print([(type(each) is ShellResult, each.stdout) for each in again])
""")
        == "True True True\nTrue True\n[(True, 'there\\n'), (True, 'there\\n')]\n"
    )


def test_a_function_that_makes_its_own_command_runs_it():
    assert (
        run("""
from globus_compute_sdk import ShellFunction
print(ShellFunction("echo {x}", return_dict=True)(x=1)["stdout"], end="")
""")
        == "1\n"
    )


def test_modules_without_a_shim_say_what_to_install():
    assert (
        run("""
import globus_compute_sdk
for statement in (
    "import globus_compute_sdk.serialize",
    "from globus_compute_sdk.sdk import client",
    "from globus_compute_sdk import Client",
):
    try:
        exec(statement)
    except ImportError as error:
        print("not installed where tasks run" in str(error), "sdk_shims.py" in str(error))
print(hasattr(globus_compute_sdk, "Executor"))
""")
        == "True False\nFalse True\nFalse True\nFalse\n"
    )


@pytest.fixture
def installed(tmp_path):
    """A directory with a package of the official one's name, which lacks a module."""
    package = tmp_path / "globus_compute_sdk"
    package.mkdir()
    (package / "__init__.py").write_text("ShellFunction = 'the real one'\n")
    return tmp_path


def test_an_installed_package_is_never_hidden_nor_completed(installed):
    assert (
        run(
            """
from globus_compute_sdk import ShellFunction
print(ShellFunction)
try:
    import globus_compute_sdk.sdk.shell_function
except ModuleNotFoundError as error:
    print(error)
""",
            [installed],
        )
        == "the real one\nNo module named 'globus_compute_sdk.sdk'\n"
    )


def test_the_finder_is_installed_last_and_once():
    assert (
        run("""
import sys
before = list(sys.meta_path)
install_stand_ins()
print(sys.meta_path == before, type(before[-1]).__module__)
""")
        == "True flux_endpoint.functions.sdk_shims\n"
    )


def test_a_client_process_has_no_shims():
    done = subprocess.run(
        [sys.executable, "-c", "import flux_endpoint.client, globus_compute_sdk"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "No module named 'globus_compute_sdk'" in done.stderr
