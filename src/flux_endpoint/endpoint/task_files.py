"""Removes old files of tasks: directories and output files that are named after a task.

Files to which tasks gave names of their own belong to the users, and are never touched.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# `<task id>/` of a sandbox; `<task id>.stdout` and `<task id>.<random>.stderr` of a command. A
# further attempt has `<task id>.<number>` instead of the id.
_OF_TASK = re.compile(rf"({_UUID})(?:\.\d+)?(?:(?:\.\w+)?\.(?:stdout|stderr))?")
#: Seconds between two scans.
PERIOD = 6 * 3600.0


def is_of_task(name: str) -> bool:
    """Return whether a directory or output file has a name that the endpoint gives by a task."""
    return _OF_TASK.fullmatch(name) is not None


class TaskFiles:
    """Removes files older than `keep`, on its own thread.

    Args:
        directory: working directory of tasks; need not exist.
        keep: seconds after a file's last change; infinity: forever.
        is_open: returns, on that thread, whether a task is unfinished.
        period: seconds between two scans.
    """

    def __init__(
        self,
        directory: Path,
        keep: float,
        is_open: Callable[[str], bool],
        period: float = PERIOD,
    ) -> None:
        self._directory = directory
        self._keep = keep
        self._is_open = is_open
        self._period = period
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="task-files", daemon=True)

    def start(self) -> None:
        """Start the thread, unless files are kept forever."""
        if self._keep != math.inf:
            self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Stop; a removal in progress may go on."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            removed = sum(self._remove(path) for path in self._old())
            if removed:
                event(log, logging.INFO, "old files of tasks removed", count=removed)
            if self._stopping.wait(min(self._period, self._keep)):
                return

    def _old(self) -> Iterator[Path]:
        try:
            entries = sorted(self._directory.iterdir())
        except OSError:  # there were no tasks yet
            return
        before = time.time() - self._keep
        for path in entries:
            found = _OF_TASK.fullmatch(path.name)
            if self._stopping.is_set():
                return
            if found and _last_change(path) < before and not self._may_be_open(found[1]):
                yield path

    def _may_be_open(self, task_id: str) -> bool:
        try:
            return self._is_open(task_id)
        except FluxEndpointError as error:  # the journal can't be read now
            event(log, logging.WARNING, "old files of a task kept", task_id=task_id, reason=error)
            return True

    def _remove(self, path: Path) -> bool:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            return False
        except (OSError, RecursionError) as error:
            event(log, logging.WARNING, "files of a task not removed", path=path, reason=error)
            return False
        return True


def _last_change(path: Path) -> float:
    """Return the last change of a file, or of anything in a directory; infinity if unknown."""
    last = -math.inf
    waiting = [path]
    while waiting:
        each = waiting.pop()
        try:
            status = each.lstat()
            last = max(last, status.st_mtime)
            if each.is_dir() and not each.is_symlink():
                waiting += each.iterdir()
        except FileNotFoundError:
            continue
        except OSError:
            return math.inf
    return last
