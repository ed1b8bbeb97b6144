"""The output of commands and of jobs is followed while they run, on either executor."""

from __future__ import annotations

import pytest

from flux_endpoint.functions import ShellFunction

#: Prints, waits for a file, and prints more.
SAYS = "echo begun ä; echo warned >&2; until [ -e {gate} ]; do sleep 0.05; done; printf 'one\ntwo'"


def says_on_ranks(gate):
    """Print on each rank, and wait for a file."""
    import time
    from pathlib import Path

    print("begun ä")
    deadline = time.monotonic() + 60
    while not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    print("end")


@pytest.mark.parametrize("spec", [None, {"num_ranks": 1}], ids=["worker", "job"])
def test_a_command_is_followed_and_its_end_has_the_positions(world, tmp_path, spec):
    gate = tmp_path / "gate"
    task = world.submit(ShellFunction(SAYS, snippet_lines=1), gate=str(gate), spec=spec)
    position, seen = world.follow(task, "stdout", "begun ä\n")
    assert (position, seen) == (9, "begun ä\n")
    assert not world.has_ended(task)
    gate.touch()
    end = world.end(task)
    assert (end.value.stdout, end.value.stderr) == ("two", "warned\n")
    details = end.message.details
    assert details["stdout"].encode()[position:] == b"one\ntwo"
    assert details["stderr"] == "warned\n"


@pytest.mark.parametrize("spec", [None, {"num_ranks": 1}], ids=["worker", "job"])
def test_a_command_that_nobody_follows_has_its_output_once(world, spec):
    end = world.call(ShellFunction("echo one; sleep 0.2; exit 3", walltime=60), spec=spec)
    assert (end.value.stdout, end.value.returncode) == ("one\n", 3)
    assert "stdout" not in end.message.details


@pytest.mark.parametrize("spec", [None, {"num_ranks": 1}], ids=["worker", "job"])
def test_a_followed_command_that_was_ended_brings_its_output_along(world, spec):
    task = world.submit(ShellFunction("echo out; echo err >&2; sleep 3600"), spec=spec)
    world.follow(task, "stderr", "err\n")
    world.engine.cancel(task)
    details = world.end(task).message.details
    assert (details["stdout"], details["stderr"]) == ("out\n", "err\n")


def prints_and_calls_a_command(gate):
    from flux_endpoint import ShellFunction

    print("printed")
    found = ShellFunction("echo of the command; until [ -e {gate} ]; do sleep 0.05; done")(
        gate=gate
    )
    print("end")
    return found.stdout


def test_a_function_that_calls_a_command_is_followed_by_what_it_prints(world, tmp_path):
    gate = tmp_path / "gate"
    task = world.submit(prints_and_calls_a_command, str(gate))
    world.follow(task, "stdout", "printed\n")
    gate.touch()
    end = world.end(task)
    assert end.value == "of the command\n"
    assert end.message.details["stdout"] == "printed\nend\n"


def test_the_ranks_of_a_function_are_followed(world, tmp_path):
    gate = tmp_path / "gate"
    task = world.submit(says_on_ranks, str(gate), spec={"num_ranks": 2})
    position, seen = world.follow(task, "stdout", "begun ä\nbegun ä\n")
    assert seen == "begun ä\nbegun ä\n"
    gate.touch()
    details = world.end(task).message.details
    assert details["stdout"].encode()[position:] == b"end\nend\n"
