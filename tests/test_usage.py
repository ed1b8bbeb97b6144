"""A meter says what each task has used, and not what earlier ones have."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flux_endpoint.usage import Meter, Usage

PROGRAM = Path(__file__).with_name("usage_program.py")


@pytest.mark.parametrize(
    "check",
    [
        "the_peak_is_that_of_the_task_alone",
        "each_command_has_its_own_peak",
        "a_child_that_may_have_been_smaller_than_an_earlier_one_has_no_known_peak",
        "without_a_reset_only_a_peak_that_grows_is_known",
    ],
)
def test_peaks(check: str) -> None:
    # By a shell, which is small: a program begins with the peak of the one that it replaces.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, PROGRAM, check]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_cpu_time_counts_this_process_and_its_children() -> None:
    meter = Meter()

    def work() -> None:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass

    meter.begin()
    work()
    own = meter.end().cpu_time
    assert 0.04 < own < 5
    meter.begin()
    time.sleep(0.2)
    assert meter.end().cpu_time < 0.15
    meter.begin()
    spin = "import time\nwhile time.process_time() < 0.1: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert 0.09 < meter.end().cpu_time < 5


def test_usages_add_up() -> None:
    assert Usage.total([]) is None
    assert Usage.total([Usage(1.0, 5), Usage(2.5, None), Usage(0.5, 7)]) == Usage(4.0, 7)
    assert Usage.total([Usage(1.0)]) == Usage(1.0, None)
