"""Describes the hardware that tasks find where they run."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

import psutil

_GIB = 1 << 30


def hardware_report(where: str = "worker") -> str:
    """Return a text for people: processors, memory, disk, and the Python of this process.

    Args:
        where: name of the place, for the heading.
    """
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(".")
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("ROCR_VISIBLE_DEVICES")
    lines = {
        "host": platform.node(),
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{len(os.sched_getaffinity(0))} of them for this process",
        "load": ", ".join(f"{load:.2f}" for load in os.getloadavg()),
        "memory": f"{memory.total / _GIB:.1f} GiB, {memory.available / _GIB:.1f} GiB available",
        "disk": f"{disk.total / _GIB:.1f} GiB, {disk.free / _GIB:.1f} GiB free, at {Path.cwd()}",
        "gpus": gpus or "none assigned",
        "python": f"{platform.python_version()}, {sys.executable}",
        "user": str(os.getuid()),
    }
    return f"== {where}\n" + "".join(f"{name:>10}: {text}\n" for name, text in lines.items())
