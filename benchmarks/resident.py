"""Processes that work in a directory, and the most memory that each has had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil


def processes_in(home: Path) -> list[psutil.Process]:
    """Return the processes that work below a directory, or that name it in words or variables."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = [process.cwd(), *process.cmdline(), *process.environ().values()]
            if any(str(home) in word for word in words):
                found.append(process)
    return found


def forget_peaks(processes: Iterable[psutil.Process]) -> None:
    """Let each process's peak be what it has now."""
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended
            Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="ascii")


def peak(process: psutil.Process) -> float:
    """Return the most memory that a process has had since its peak was forgotten; MiB."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
