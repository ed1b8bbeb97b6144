"""Which tasks the workers of a node have begun, for when nobody there is left to tell.

A file that all workers have in their memory: each writes the task that it is about to start into a
ring of its own. Who finds the file after a manager was killed knows what never began.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

#: Bytes of a task's entry.
_SIZE = 16
#: Tasks that the pool lets a manager hold for each worker: one that runs, and those sent ahead.
_HELD = 17
#: Most entries of a worker.
_MOST = 4096
_NOTHING = bytes(_SIZE)


def _entry(task_id: str) -> bytes:
    return hashlib.blake2b(task_id.encode(), digest_size=_SIZE).digest()


class BegunTasks:
    """The rings of a node's workers; made by the manager, written by each worker.

    Args:
        path: the file; made anew.
        workers: how many workers there are.

    Raises:
        OSError: the file can't be made.
    """

    def __init__(self, path: Path, workers: int) -> None:
        self._slots = min(_MOST, _HELD * workers)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, workers * self._slots * _SIZE)
            self._memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._next = 0

    def note(self, place: int, task_id: str) -> None:
        """Note that the worker in `place` starts a task; only one process may be that worker."""
        at = (place * self._slots + self._next) * _SIZE
        self._memory[at : at + _SIZE] = _entry(task_id)
        self._next = (self._next + 1) % self._slots


class BegunRecord:
    """What a manager's file says of tasks.

    Args:
        path: the file.

    Raises:
        OSError: it can't be read.
    """

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self._entries = {data[at : at + _SIZE] for at in range(0, len(data), _SIZE)} - {_NOTHING}

    def __contains__(self, task_id: object) -> bool:
        return isinstance(task_id, str) and _entry(task_id) in self._entries
