"""Which processes have a file open, also one that was deleted."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

#: What the kernel puts after the name of a file that is there no more.
_DELETED = " (deleted)"


@dataclass(frozen=True)
class LockHolder:
    """A process that has a file open.

    Attributes:
        pid: its number.
        file: a path to what it has open, which works for a deleted file, too.
        deleted: whether that is there no more, though another file may be in its place.
    """

    pid: int
    file: Path
    deleted: bool


def holders_of(path: Path) -> list[LockHolder]:
    """Return the other processes that have `path` open to write, as far as this user may know.

    Who has it open to read looks who has locked it, and is gone in a moment.
    """
    wanted = {str(path): False, f"{path}{_DELETED}": True}
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is another user's
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
