"""Detects that the disk was full where a command wrote its output."""

from __future__ import annotations

import errno
import os
import stat


def lacks_room(path: object, descriptor: int) -> str:
    """Return a line that reports a full disk, which the command itself may not have reported.

    Few programs name the file when a write fails, and their message may not have fit either. If
    Flux's job shell writes the output, nobody reports the error.

    Args:
        path: the file's name, for the text.
        descriptor: the open file.

    Returns:
        A line, or "" if there is room.
    """
    system = os.fstatvfs(descriptor)
    room = system.f_bfree if os.geteuid() == 0 else system.f_bavail
    if system.f_blocks and not room and stat.S_ISREG(os.fstat(descriptor).st_mode):
        return f"{path}: {os.strerror(errno.ENOSPC)}: the command's output may be incomplete\n"
    return ""
