"""A function that needs a name or a module that is not there: the error says what to do."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from flux_endpoint.engine.task import Failure, TaskRunner, TaskSettings
from flux_endpoint.serialize import ComputeSerializer

NOT_INSTALLED = f"is not installed for this Python, {sys.executable}"


def run(function: str, tmp_path) -> Failure:
    runner = TaskRunner(TaskSettings("endpoint", str(tmp_path), False, None))
    serializer = ComputeSerializer()
    parts = [serializer.serialize(each) for each in ((), {})]
    end = runner.run("task", serializer.pack_buffers([function, *parts]), None)
    assert isinstance(end, Failure)
    return end


@pytest.mark.parametrize(
    ("body", "last"),
    [
        ("return np.zeros(3)", "NameError: name 'np' is not defined (a function is sent without"),
        ("import numpyx.linalg", f"No module named 'numpyx' (numpyx {NOT_INSTALLED}: install"),
        ("return [n for n in range(3) if m]", "NameError: name 'm' is not defined (a function"),
    ],
)
def test_the_last_line_says_what_to_do(body, last, tmp_path):
    text = run(f"st\nf:def f():\n    {body}\n", tmp_path).text
    assert last in text.splitlines()[-1]
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith(")\n")


@pytest.mark.parametrize(
    "body",
    [
        "n += 1; n = 2",  # a fault of the function itself
        "import collections; collections.namedtuple('A', 'a')(1, 2)",
        "eval('np', vars(__import__('json')))",  # of an installed module
    ],
)
def test_other_errors_stay_as_they_are(body, tmp_path):
    assert "a function is sent" not in run(f"st\nf:def f():\n    {body}\n", tmp_path).text


def test_a_function_of_a_module_that_is_not_installed_is_one_line(tmp_path):
    module = types.ModuleType("only_on_the_laptop")
    exec("def f(): pass", module.__dict__)
    sys.modules["only_on_the_laptop"] = module
    try:
        function = ComputeSerializer().serialize(module.f)
    finally:
        del sys.modules["only_on_the_laptop"]
    [line] = run(function, tmp_path).text.splitlines()
    assert f"refers to a module by name, and only_on_the_laptop {NOT_INSTALLED}" in line


def test_a_function_of_a_main_program_has_the_names_of_the_workers(tmp_path, monkeypatch):
    program = (
        "from flux_endpoint.serialize import ComputeSerializer\n"
        "import math\n"
        "def f():\n    return math.pi\n"
        "print(ComputeSerializer().serialize(f), end='')\n"
    )
    run_program = [sys.executable, "-c", program]
    done = subprocess.run(run_program, capture_output=True, text=True, check=True, timeout=60)
    # As in a worker, which `python -m` has started.
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", sys.__spec__)
    assert "a function is sent without" in run(done.stdout, tmp_path).text
