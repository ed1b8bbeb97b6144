"""A worker: one process that runs one task at a time."""

from __future__ import annotations

import math
import os
import select
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from flux_endpoint.engine import results
from flux_endpoint.engine.task import Failure, TaskRunner, TaskSettings, Value
from flux_endpoint.engine.workers.frames import Claims, FrameReader, write_frame
from flux_endpoint.engine.workers.pipes import WorkerPipes
from flux_endpoint.engine.workers.process_state import (
    PrintedOutput,
    ProcessState,
    out_of_the_way,
    stop_profiling_timer,
    stop_real_timer,
    stop_virtual_timer,
)
from flux_endpoint.engine.workers.process_tree import CONNECTION_CLOSED
from flux_endpoint.functions import is_command
from flux_endpoint.functions.execution import CommandFiles, report_files
from flux_endpoint.protocol.envelope import ATTEMPTS, NODE, WORKER
from flux_endpoint.protocol.states import ErrorCode, TaskState
from flux_endpoint.usage import Meter

#: Seconds without a task after which remaining threads are checked, and the share of a CPU from
#: which on they count as busy.
_QUIET = 1.0
_BUSY = 0.1


class Worker:
    """Runs tasks in this process, which does nothing else.

    Args:
        channel: the connection to its manager.
        claims: decides which of the received tasks may start.
        pipes: those behind this process's standard output and error.
        settings: how tasks run here.
        note: called with the id of each task that is about to start.
    """

    def __init__(
        self,
        channel: socket.socket,
        claims: Claims,
        pipes: WorkerPipes,
        settings: TaskSettings,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._channel = socket.socket(fileno=out_of_the_way(channel.detach()))
        self._channel_file = _file_of(self._channel)
        self._frames = FrameReader(self._channel)
        self._claims = Claims(out_of_the_way(claims.fileno()))
        self._note = note or (lambda _task_id: None)
        self._pid = os.getpid()
        self._runner = TaskRunner(settings)
        self._details = {
            **results.worker_details(settings.endpoint_id),
            NODE: socket.gethostname(),
            WORKER: self._pid,
        }
        self._meter = Meter()
        self._output = PrintedOutput(pipes)
        self._state = ProcessState()
        #: Id and buffer of the present task.
        self._task = ("", "")
        #: Why this process must be replaced.
        self._leaves = ""
        report_files(self._report_files)

    def work(self) -> None:
        """Run the tasks that may start until the channel is closed or a task damages the process.

        In the latter case the manager gets `{"leaves": why}`.
        """
        while not self._leaves:
            if self._state.has_threads and not self._frames.has_data:
                self._watch_threads()
            if self._leaves or (frame := self._frames.read()) is None:
                break
            self._serve(*frame)
        if self._leaves:
            write_frame(self._channel, {"leaves": self._leaves})

    def _serve(self, header: dict[str, Any], buffer: bytes) -> None:
        task_id = header["id"]
        if not self._claims.take():
            write_frame(self._channel, {"skipped": task_id})
            return
        if header.get("before", math.inf) <= time.time():
            write_frame(self._channel, {"late": task_id})
            return
        self._note(task_id)
        began = time.monotonic()
        self._meter.begin()
        statuses = [results.transition(TaskState.EXEC_START)]
        self._task = (task_id, buffer.decode())
        end = self._run(header, self._task[1])
        self._task = ("", "")
        statuses.append(results.transition(TaskState.EXEC_END))
        details = self._details | results.usage_details(self._meter.end())
        if "attempt" in header:
            details[ATTEMPTS] = header["attempt"]
        if _file_of(self._channel) != self._channel_file:
            os._exit(CONNECTION_CLOSED)  # the descriptor may belong to something else by now
        report = {
            "id": task_id,
            "returncode": end.returncode if isinstance(end, Value) else None,
            "seconds": time.monotonic() - began,
        }
        printed, streams = self._output.take()
        body = results.body_of(task_id, end, details, statuses)
        if not printed:
            write_frame(self._channel, report, body)
        else:
            write_frame(self._channel, report | printed, body + streams)
            if "unread" in printed:
                self._output.wait()
        _reap()

    def _run(self, header: dict[str, Any], buffer: str) -> Value | Failure:
        """Run a task, and restore the state of this process."""
        end: Value | Failure | None = None
        late: BaseException
        try:
            if header.get("format"):
                end = self._runner.format(buffer)
            else:
                process = header.get("process")
                end = self._runner.run(header["id"], buffer, header.get("rs"), process)
            self._end_if_forked()
            self._leaves = self._state.restore()
        except BaseException as error:  # noqa: BLE001 - by a signal handler, too late for its task
            late = error
        else:
            return end
        # A timer may fire at any call. Python handles signals after a C function has returned,
        # never inside it: each of these calls stops one timer, even if it raises.
        try:  # noqa: SIM105
            stop_real_timer()
        except BaseException:  # noqa: BLE001, S110
            pass
        try:  # noqa: SIM105
            stop_virtual_timer()
        except BaseException:  # noqa: BLE001, S110
            pass
        try:  # noqa: SIM105
            stop_profiling_timer()
        except BaseException:  # noqa: BLE001, S110
            pass
        self._end_if_forked()
        text = "".join(traceback.format_exception(late))
        end = end or Failure(ErrorCode.REMOTE_EXECUTION, text)
        self._leaves = self._state.restore()
        return end

    def _report_files(self, files: CommandFiles) -> None:
        """Report where a command writes, for those who follow it: not one that a function calls."""
        task_id, buffer = self._task
        if is_command(buffer) and _file_of(self._channel) == self._channel_file:
            write_frame(self._channel, {"writes": task_id, **asdict(files)})

    def _end_if_forked(self) -> None:
        """End this process if a task has forked it and it has returned here."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _watch_threads(self) -> None:
        """Wait a while for a task; if none comes, check whether other threads use the CPU."""
        wall, used = time.monotonic(), time.process_time()
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if not poll.poll(_QUIET * 1000):
            share = (time.process_time() - used) / (time.monotonic() - wall)
            if share > _BUSY:
                self._leaves = "a task has left a thread that goes on using the CPU"


def work(
    channel: socket.socket,
    claims: Claims,
    pipes: WorkerPipes,
    settings: TaskSettings,
    note: Callable[[str], None] | None = None,
) -> None:
    """Run as a worker until `channel` is closed or another process must replace this one."""
    Worker(channel, claims, pipes, settings, note).work()


def _file_of(channel: socket.socket) -> tuple[int, int] | None:
    try:
        status = os.fstat(channel.fileno())
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _reap() -> None:
    """Collect the exited processes that tasks left: this worker is their subreaper."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
