"""A meter says what each task has used, and not what earlier ones have."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flux_endpoint.functions.execution import run_command
from flux_endpoint.usage import Meter, Usage

MIB = 1 << 20
#: Memory that a task takes, in bytes, and a command that takes four times as much.
TAKEN = 64 * MIB
TAKES = f"{sys.executable} -c 'bytearray({4 * TAKEN})'"


@pytest.fixture
def meter() -> Meter:
    return Meter()


def peak(usage: Usage) -> int:
    assert usage.max_rss is not None
    return usage.max_rss


def test_the_peak_is_that_of_the_task_alone(meter: Meter) -> None:
    meter.begin()
    small = peak(meter.end())
    for _ in range(2):
        meter.begin()
        bytearray(TAKEN)
        assert peak(meter.end()) >= small + TAKEN - 4 * MIB
        meter.begin()
        assert peak(meter.end()) < small + TAKEN / 2


def test_cpu_time_counts_this_process_and_its_children(meter: Meter) -> None:
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


def test_each_command_has_its_own_peak(meter: Meter, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        meter.begin()
        run_command(TAKES)
        large = peak(meter.end())
        assert large >= 4 * TAKEN
        meter.begin()
        run_command("true")
        assert peak(meter.end()) < large - TAKEN


def test_a_child_that_may_have_been_smaller_than_an_earlier_one_has_no_known_peak(
    meter: Meter,
) -> None:
    bytearray(TAKEN)
    big = [sys.executable, "-c", f"bytearray({8 * TAKEN})"]
    meter.begin()
    subprocess.run(big, check=True)
    assert peak(meter.end()) >= 8 * TAKEN
    meter.begin()
    subprocess.run(["true"], check=True)
    assert meter.end().max_rss is None


def test_without_a_reset_only_a_peak_that_grows_is_known(meter: Meter, monkeypatch) -> None:
    monkeypatch.setattr("flux_endpoint.usage._CLEAR_REFS", Path("/nowhere/clear_refs"))
    meter.begin()
    bytearray(12 * TAKEN)
    assert peak(meter.end()) >= 12 * TAKEN
    meter.begin()
    assert meter.end().max_rss is None


def test_usages_add_up() -> None:
    assert Usage.total([]) is None
    assert Usage.total([Usage(1.0, 5), Usage(2.5, None), Usage(0.5, 7)]) == Usage(4.0, 7)
    assert Usage.total([Usage(1.0)]) == Usage(1.0, None)
