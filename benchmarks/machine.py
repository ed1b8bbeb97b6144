"""The machine that a benchmark runs on, and whether others use it meanwhile."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Share of all cores in use by others from which on figures are worth nothing.
BUSY = 0.1


@dataclass(frozen=True)
class Machine:
    """What it is."""

    processor: str
    cores: int
    memory_gib: float
    kernel: str

    def __str__(self) -> str:
        return (
            f"{self.cores} cores ({self.processor}), {self.memory_gib:.0f} GiB, Linux {self.kernel}"
        )


def this_machine() -> Machine:
    """Return what this machine is."""
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
    """How busy the machine was while nothing of ours ran.

    Args:
        share: of all cores that was in use, or that the host of a virtual machine kept.
        average: the load average of the minute before, our own processes included.
    """

    share: float
    average: float

    @property
    def busy(self) -> bool:
        return self.share > BUSY


def load(seconds: float) -> Load:
    """Watch the machine for so many seconds, in which the caller should have nothing running."""
    before = psutil.cpu_times()
    time.sleep(seconds)
    after = psutil.cpu_times()
    # Guests' time is also part of the user's.
    names = [name for name in after._fields if not name.startswith("guest")]
    spent = {name: getattr(after, name) - getattr(before, name) for name in names}
    idle = spent["idle"] + spent.get("iowait", 0.0)
    return Load(1 - idle / max(sum(spent.values()), 1e-9), os.getloadavg()[0])
