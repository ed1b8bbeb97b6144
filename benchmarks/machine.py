"""Describes the machine of a benchmark, and detects whether other programs use it."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

#: If other programs use more than this share of all cores, the figures are invalid.
BUSY = 0.1


@dataclass(frozen=True)
class Machine:
    """The hardware and kernel of a machine."""

    processor: str
    cores: int
    memory_gib: float
    kernel: str

    def __str__(self) -> str:
        return (
            f"{self.cores} cores ({self.processor}), {self.memory_gib:.0f} GiB, Linux {self.kernel}"
        )


def this_machine() -> Machine:
    """Return the description of this machine."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return Machine(
        processor=names[0] if names else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=psutil.virtual_memory().total / 2**30,
        kernel=platform.release(),
    )


@dataclass(frozen=True)
class Load:
    """The load of the machine while no process of the benchmark ran.

    Args:
        share: share of all cores that other programs used, or that the hypervisor withheld.
        average: load average of the last minute; includes processes of the benchmark.
    """

    share: float
    average: float

    @property
    def busy(self) -> bool:
        return self.share > BUSY


def load(seconds: float) -> Load:
    """Measure the load of the machine for some seconds; the caller must not be busy meanwhile."""
    before = psutil.cpu_times()
    time.sleep(seconds)
    after = psutil.cpu_times()
    # The time of guests is already part of "user".
    names = [name for name in after._fields if not name.startswith("guest")]
    spent = {name: getattr(after, name) - getattr(before, name) for name in names}
    idle = spent["idle"] + spent.get("iowait", 0.0)
    return Load(1 - idle / max(sum(spent.values()), 1e-9), os.getloadavg()[0])
