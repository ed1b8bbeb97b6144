"""Environments and locales that are not UTF-8: jobs run all the same, on either executor."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flux_endpoint.engine import environment
from flux_endpoint.engine.environment import job_environment
from flux_endpoint.functions import MPIFunction, ShellFunction

_SECRET = b"secret caf\xe9"


@pytest.fixture
def odd(monkeypatch):
    """Variables of this process that are not UTF-8, beside one that is."""
    monkeypatch.setattr(environment, "_reported", set())
    names = (b"ODD", b"ODD\xff", b"EVEN")
    for name, value in zip(names, (_SECRET, b"x", "caf\u00e9".encode()), strict=True):
        monkeypatch.setitem(os.environb, name, value)


def variables():
    import os

    return {name: os.environ[name] for name in os.environ if name.startswith(("ODD", "EVEN"))}


def test_variables_that_are_not_utf8_are_left_out_and_named_once(odd, caplog):
    with caplog.at_level(logging.WARNING):
        kept = job_environment()
        job_environment()

    assert {name for name in kept if "ODD" in name} == set()
    assert kept["EVEN"] == "caf\u00e9"
    assert [record.getMessage() for record in caplog.records] == [
        "jobs start without the variable ODD: it is not UTF-8",
        "jobs start without the variable 'ODD\\udcff': it is not UTF-8",
    ]
    assert "secret" not in caplog.text


def test_every_kind_of_task_runs_without_variables_that_are_not_utf8(odd, make_world):
    world = make_world()
    shown = "env | grep -a -e ODD -e EVEN"

    function = world.call(variables)
    command = world.call(ShellFunction(shown))
    command_job = world.call(ShellFunction(shown), spec={"num_ranks": 1})
    script_job = world.call(MPIFunction("true; " + shown), spec={"num_ranks": 1})
    ranks = world.call(variables, spec={"num_ranks": 1})

    assert function.value == {"EVEN": "caf\u00e9"}
    assert ranks.value == [{"EVEN": "caf\u00e9"}]
    for end in (command, command_job, script_job):
        assert end.value.stdout == "EVEN=caf\u00e9\n"


#: Starts an engine in its own locale, and prints what came of its tasks.
_PROGRAM = """
import json, sys, tempfile
from pathlib import Path
from engine_world import World
from flux_endpoint.functions import ShellFunction


def prints(text):
    print(text)
    return text


if __name__ == "__main__":
    world = World("local", Path(sys.argv[1]), local_nodes=1, local_cores_per_node=2)
    text = "\\u0192 caf\\u00e9"
    spec = {"num_ranks": 1}
    echo = ShellFunction("echo '" + text + "'")
    echo_to_file = ShellFunction("echo '" + text + "'", stdout=text)
    try:
        ends = [
            world.call(prints, text),
            world.call(echo),
            world.call(echo_to_file),
            world.call(echo, spec=spec),
            world.call(prints, text, spec=spec),
        ]
        values = [end.value if end.code is None else end.text for end in ends]
        print(json.dumps([getattr(value, "stdout", value) for value in values]))
        print(json.dumps(sys.getfilesystemencoding()))
    finally:
        world.stop()
"""


def in_the_locale_c(*arguments, **options):
    """Run a Python whose encoding is ASCII."""
    variables = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    kept = {k: v for k, v in os.environ.items() if k != "FLUX_URI"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**kept, **variables, **options},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_tasks_run_in_a_locale_that_is_not_utf8(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    directory = tmp_path / "endpoint"

    values, encoding = in_the_locale_c(
        str(program), str(directory), PYTHONPATH=str(Path(__file__).parent)
    )

    text = "\u0192 caf\u00e9"
    assert json.loads(encoding) == "ascii"
    assert json.loads(values) == [text, f"{text}\n", f"{text}\n", f"{text}\n", [text]]
    assert (directory / "tasks_working_dir" / text).read_text() == f"{text}\n"
