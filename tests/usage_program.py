"""Checks of `Meter` in a process of their own: `python usage_program.py NAME`.

The kernel keeps peaks for the whole life of a process, and a child begins with its parent's memory.
A test process may have used any amount before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from flux_endpoint import usage
from flux_endpoint.functions.execution import run_command
from flux_endpoint.usage import Meter, Usage

MIB = 1 << 20
#: Memory that a task takes, in bytes, and a command that takes four times as much.
TAKEN = 64 * MIB
TAKES = f"{sys.executable} -c 'bytearray({4 * TAKEN})'"


def peak(used: Usage) -> int:
    assert used.max_rss is not None
    return used.max_rss


def empty(meter: Meter) -> int:
    meter.begin()
    return peak(meter.end())


def the_peak_is_that_of_the_task_alone(meter: Meter) -> None:
    small = empty(meter)
    for _ in range(2):
        meter.begin()
        bytearray(TAKEN)
        assert peak(meter.end()) >= small + TAKEN - 4 * MIB
        meter.begin()
        assert peak(meter.end()) < small + TAKEN / 2


def each_command_has_its_own_peak(meter: Meter) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for _ in range(2):
            meter.begin()
            run_command(TAKES)
            large = peak(meter.end())
            assert large >= 4 * TAKEN
            meter.begin()
            run_command("true")
            assert peak(meter.end()) < large - TAKEN
        os.chdir("/")


def a_child_that_may_have_been_smaller_than_an_earlier_one_has_no_known_peak(meter: Meter) -> None:
    bytearray(TAKEN)
    big = [sys.executable, "-c", f"bytearray({8 * TAKEN})"]
    meter.begin()
    subprocess.run(big, check=True)
    assert peak(meter.end()) >= 8 * TAKEN
    meter.begin()
    subprocess.run(["true"], check=True)
    assert meter.end().max_rss is None


def without_a_reset_only_a_peak_that_grows_is_known(meter: Meter) -> None:
    usage._CLEAR_REFS = Path("/nowhere/clear_refs")
    meter.begin()
    bytearray(12 * TAKEN)
    assert peak(meter.end()) >= 12 * TAKEN
    meter.begin()
    assert meter.end().max_rss is None


if __name__ == "__main__":
    globals()[sys.argv[1]](Meter())
