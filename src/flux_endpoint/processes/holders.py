"""Finds the processes that have a file open, even a deleted one."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

#: Suffix that the kernel appends to the name of a deleted file.
_DELETED = " (deleted)"


@dataclass(frozen=True)
class LockHolder:
    """A process that has a file open.

    Attributes:
        pid: its process id.
        file: a path to the open file, which works for a deleted file, too.
        deleted: whether the file was deleted; another file may have its name now.
    """

    pid: int
    file: Path
    deleted: bool


def holders_of(path: Path) -> list[LockHolder]:
    """Return the other processes that have `path` open for writing, as far as this user can see.

    Processes that have it open for reading only check the lock, and are gone in a moment.
    """
    wanted = {str(path): False, f"{path}{_DELETED}": True}
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            for each in (process / "fd").iterdir():
                target = str(each.readlink())
                if target in wanted and _writes(process, each.name):
                    found.append(LockHolder(int(process.name), each, wanted[target]))
                    break
    return found


def _writes(process: Path, descriptor: str) -> bool:
    for line in (process / "fdinfo" / descriptor).read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "flags":
            return int(value, 8) & os.O_ACCMODE != os.O_RDONLY
    return True
