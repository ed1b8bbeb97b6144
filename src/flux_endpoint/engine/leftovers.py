"""Processes of a task that are left on this host, found by their inherited environment."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import psutil

#: Passes over the process table; the second is for processes forked during the first.
_PASSES = 2


def kill_tasks(task_ids: Collection[str]) -> set[str]:
    """Kill all of the user's processes that these tasks started; return the tasks that had any."""
    found = set()
    for _ in range(_PASSES if task_ids else 0):
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                task_id = process.environ().get("GC_TASK_UUID")
                if task_id is not None and task_id in task_ids:
                    found.add(task_id)
                    process.kill()
    return found
