"""Whether there was room for what a command wrote."""

from __future__ import annotations

import errno
import os
import stat


def lacks_room(path: object, descriptor: int) -> str:
    """Return what a command could not say itself: that there is no room for its output.

    A program that can't write its output seldom names the file, and its words may not have found
    room either. Where Flux's job shell writes for it, nobody says anything.

    Args:
        path: the file, for people.
        descriptor: the open file.

    Returns:
        A line, or "" where there is room.
    """
    system = os.fstatvfs(descriptor)
    room = system.f_bfree if os.geteuid() == 0 else system.f_bavail
    if system.f_blocks and not room and stat.S_ISREG(os.fstat(descriptor).st_mode):
        return f"{path}: {os.strerror(errno.ENOSPC)}: the command's output may be incomplete\n"
    return ""
