"""A worker: one process that runs one task at a time."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from contextlib import suppress

from flux_endpoint.engine import results
from flux_endpoint.engine.task import TaskRunner, TaskSettings, Value
from flux_endpoint.engine.workers.claims import Claims
from flux_endpoint.engine.workers.frames import read_frame, write_frame
from flux_endpoint.protocol.states import TaskState


def work(channel: socket.socket, claims: Claims, settings: TaskSettings) -> None:
    """Run the tasks from `channel` that `claims` allows, until it is closed."""
    own_pid = os.getpid()
    runner = TaskRunner(settings)
    details = results.worker_details(settings.endpoint_id)
    while (frame := read_frame(channel)) is not None:
        header, buffer = frame
        task_id = header["id"]
        if not claims.take():
            write_frame(channel, {"skipped": task_id})
            continue
        if header.get("before", math.inf) <= time.time():
            write_frame(channel, {"late": task_id})
            continue
        statuses = [results.transition(TaskState.EXEC_START)]
        if header.get("format"):
            end = runner.format(buffer.decode())
        else:
            end = runner.run(task_id, buffer.decode(), header.get("rs"))
        if os.getpid() != own_pid:  # a process that the task forked, and that came back here
            os._exit(0)
        statuses.append(results.transition(TaskState.EXEC_END))
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # a task may have closed it
                stream.flush()
        told = {"id": task_id, "returncode": end.returncode if isinstance(end, Value) else None}
        write_frame(channel, told, results.body_of(task_id, end, details, statuses))
        _reap()


def _reap() -> None:
    """Collect what a task left behind and what has ended since: its worker is its subreaper."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
