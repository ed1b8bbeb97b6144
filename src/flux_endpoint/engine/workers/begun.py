"""Which tasks a node's workers have begun, readable after the node's manager was killed.

All workers share a memory-mapped file. Each writes the tasks that it is about to start into its own
ring. A task that is not in the file was never started.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
from pathlib import Path

from flux_endpoint import logs
from flux_endpoint.engine.workers.backlog import most_held

log = logging.getLogger(__name__)

#: Size of an entry in bytes.
_SIZE = 16
_NOTHING = bytes(_SIZE)


def _entry(task_id: str) -> bytes:
    return hashlib.blake2b(task_id.encode(), digest_size=_SIZE).digest()


class BegunTasks:
    """The rings of a node's workers; created by the manager, written by each worker.

    Args:
        path: the file; an existing one is replaced.
        workers: number of workers.

    Raises:
        OSError: the file can't be created.
    """

    def __init__(self, path: Path, workers: int) -> None:
        # One worker may have begun all tasks whose ends the pool does not have.
        self._slots = most_held(workers)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, workers * self._slots * _SIZE)
            self._memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._next = 0

    def note(self, place: int, task_id: str) -> None:
        """Record that the worker in `place` starts a task; only one process may be that worker."""
        at = (place * self._slots + self._next) * _SIZE
        self._memory[at : at + _SIZE] = _entry(task_id)
        self._next = (self._next + 1) % self._slots


class BegunRecord:
    """The tasks in a manager's file of begun tasks.

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


def record_begun(path: Path, workers: int) -> BegunTasks | None:
    """Return the rings of a node's workers; `None` if the node can't write the file.

    Args:
        path: the file; a node that does not mount the endpoint's directory has none.
        workers: how many workers there are.
    """
    try:
        return BegunTasks(path, workers)
    except OSError as error:
        logs.event(log, logging.WARNING, "can't record which tasks begin", reason=error)
        return None
