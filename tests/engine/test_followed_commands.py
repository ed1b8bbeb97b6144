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


@pytest.mark.parametrize("spec", [{"num_ranks": 1}], ids=["job"])
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


def test_a_command_that_nobody_follows_has_its_output_once(world):
    end = world.call(ShellFunction("echo one"), spec={"num_ranks": 1})
    assert end.value.stdout == "one\n"
    assert "stdout" not in end.message.details


def test_the_ranks_of_a_function_are_followed(world, tmp_path):
    gate = tmp_path / "gate"
    task = world.submit(says_on_ranks, str(gate), spec={"num_ranks": 2})
    position, seen = world.follow(task, "stdout", "begun ä\nbegun ä\n")
    assert seen == "begun ä\nbegun ä\n"
    gate.touch()
    details = world.end(task).message.details
    assert details["stdout"].encode()[position:] == b"end\nend\n"
