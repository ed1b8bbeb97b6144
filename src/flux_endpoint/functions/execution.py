"""Runs one command on this machine, to its end or to the end of its time."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flux_endpoint.functions.room import lacks_room
from flux_endpoint.functions.snippet import last_lines, snippet_limit
from flux_endpoint.functions.tree import MARK, CommandTree

#: Return code of a command whose walltime ran out, as `timeout(1)` has it.
WALLTIME_RETURNCODE = 124

#: How long processes have between SIGTERM and SIGKILL when the walltime runs out, in seconds.
GRACE = 2.0

_FAILED = "subprocess.CalledProcessError"
_OUT_OF_TIME = "subprocess.TimeoutExpired"
#: Bytes that Linux takes in one argument, the final NUL included.
_LONGEST_ARGUMENT = 32 * 4096
#: `poll` takes its time in milliseconds as a C int.
_LONGEST_POLL = 2**31 // 1000 - 1


@dataclass(frozen=True)
class ExecutionOutcome:
    """How a command ended: a return code, and the name of the error that stands for it."""

    returncode: int
    exception_name: str | None


def outcome_of(returncode: int) -> ExecutionOutcome:
    """Return the outcome of a command that ended by itself.

    Args:
        returncode: its exit code, or minus the signal that killed it.
    """
    return ExecutionOutcome(returncode, _FAILED if returncode else None)


#: The outcome of a command whose walltime ran out.
OUT_OF_TIME = ExecutionOutcome(WALLTIME_RETURNCODE, _OUT_OF_TIME)


@dataclass(frozen=True)
class Execution:
    """A command's outcome, and the last lines of its streams."""

    outcome: ExecutionOutcome
    stdout: str
    stderr: str


def run_command(
    command: str,
    *,
    stdout: str | None = None,
    stderr: str | None = None,
    walltime: float | None = None,
    snippet_lines: int = 1000,
) -> Execution:
    """Run `command` with `bash -c` and wait for it, but not for what it left in the background.

    It runs in `$GC_TASK_SANDBOX_DIR`, which is created, or else in the current directory.

    Args:
        command: the command line.
        stdout: file to which its standard output is appended, relative to where it runs; by
            default a new one there, called `<task id>.<random>.stdout`.
        stderr: the same for its standard error.
        walltime: seconds after which it and everything it started is ended.
        snippet_lines: how many lines of each stream to return.

    Raises:
        OSError: a file can't be written, or there is no `bash`.
    """
    sandbox = os.environ.get("GC_TASK_SANDBOX_DIR")
    directory = Path(sandbox) if sandbox else Path.cwd()
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{os.environ.get('GC_TASK_UUID') or uuid.uuid4()}.{uuid.uuid4().hex[:8]}"
    out_path = directory / (stdout or f"{stem}.stdout")
    err_path = directory / (stderr or f"{stem}.stderr")
    with _opened(out_path) as out, _opened(err_path) as err:
        out_start, err_start = os.fstat(out).st_size, os.fstat(err).st_size
        outcome = _run(command, directory, out, err, walltime)
        limit = snippet_limit(command)
        return Execution(
            outcome,
            last_lines(out, out_start, snippet_lines, limit),
            last_lines(err, err_start, snippet_lines, limit)
            + (lacks_room(out_path, out) or lacks_room(err_path, err)),
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Readable, too: the snippet comes from this file even if the command renames it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _run(
    command: str, directory: Path, out: int, err: int, walltime: float | None
) -> ExecutionOutcome:
    limited = walltime is not None and math.isfinite(walltime)
    mark = uuid.uuid4().hex
    with (
        _Invocation(command) as bash,
        CommandTree(mark, adopt=limited) as tree,
        _HeldSignals() as held,
    ):
        process = subprocess.Popen(
            bash.words,
            pass_fds=bash.descriptors,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, MARK: mark},
            start_new_session=True,
        )
        tree.started(process.pid)
        try:
            held.release()
            ended = _wait(process, walltime if limited else None)
            if not ended:
                tree.end(GRACE)
                process.wait()
        except BaseException:  # Ctrl-C and the like: nobody would be left to end the command
            tree.end(GRACE)
            process.wait()
            raise
        return outcome_of(process.returncode) if ended else OUT_OF_TIME


class _Invocation:
    """How bash is called for a command, and the descriptors that it needs for that.

    A command that is too long for an argument is read from a file that has no name. Apart from
    that it is run as any other: in the same shell, with the same `$0` and `$$`.
    """

    def __init__(self, command: str) -> None:
        self._text = os.fsencode(command)
        self._file: IO[bytes] | None = None
        self.words: list[str | bytes] = ["bash", "-c", self._text]
        self.descriptors: tuple[int, ...] = ()

    def __enter__(self) -> _Invocation:
        if len(self._text) >= _LONGEST_ARGUMENT:
            self._file = tempfile.TemporaryFile()
            self._file.write(self._text)
            self._file.flush()
            self.descriptors = (self._file.fileno(),)
            self.words = ["bash", "-c", f". /dev/fd/{self._file.fileno()}"]
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


class _HeldSignals:
    """What signals raise here, such as Ctrl-C's, is raised when they are released, not before.

    It would come between any two steps, and nobody would know of a process that was being started.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._came: list[int] = []

    def __enter__(self) -> _HeldSignals:
        if threading.current_thread() is not threading.main_thread():
            return self  # only that one runs handlers
        try:
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        except BaseException:  # one that is not held yet
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _note(self, number: int, _frame: object) -> None:
        self._came.append(number)

    def release(self) -> None:
        """Let them come again, first those that came meanwhile."""
        for number in list(self._handlers):
            signal.signal(number, self._handlers[number])
            del self._handlers[number]
        while self._came:
            signal.raise_signal(self._came.pop(0))


def _wait(process: subprocess.Popen[bytes], seconds: float | None) -> bool:
    """Wait for `process`; return whether it ended in time."""
    if seconds is None:
        process.wait()
        return True
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # no such call on this system
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
    # `Popen.wait` with a timeout looks again and again; this wakes when the process ends.
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + seconds
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            if poll.poll(math.ceil(min(left, _LONGEST_POLL) * 1000)):
                process.wait()
                return True
            if left == 0.0:
                return False
    finally:
        os.close(descriptor)
