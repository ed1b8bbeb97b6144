"""Finds the processes that belong to a directory, and their peak memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil


def processes_in(home: Path) -> list[psutil.Process]:
    """Return the processes whose working directory, arguments or environment has a directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = [process.cwd(), *process.cmdline(), *process.environ().values()]
            if any(str(home) in word for word in words):
                found.append(process)
    return found


def forget_peaks(processes: Iterable[psutil.Process]) -> None:
    """Reset the peak memory of processes to their present memory."""
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended
            Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="ascii")


def peak(process: psutil.Process) -> float:
    """Return the peak memory (MiB) of a process since it was reset."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
