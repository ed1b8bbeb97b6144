"""Runs one command on this machine until it ends or its walltime is over."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flux_endpoint.functions.output_files import output_file
from flux_endpoint.functions.room import lacks_room
from flux_endpoint.functions.snippet import last_lines, snippet_limit
from flux_endpoint.functions.tree import MARK, CommandTree
from flux_endpoint.usage import note_command

#: Return code of a command whose walltime is over, as with `timeout(1)`.
WALLTIME_RETURNCODE = 124

#: Seconds between SIGTERM and SIGKILL when the walltime is over.
GRACE = 2.0

_FAILED = "subprocess.CalledProcessError"
_OUT_OF_TIME = "subprocess.TimeoutExpired"
#: Longest argument that Linux accepts, in bytes, including the final NUL.
_LONGEST_ARGUMENT = 32 * 4096
_SIGNALS = tuple(map(int, signal.valid_signals()))
#: The functions of `signal` without their wrappers, which take ten times as long.
_getsignal: Callable[[int], Any] = sys.modules["_signal"].getsignal
_signal: Callable[[int, Any], Any] = sys.modules["_signal"].signal
#: What they return for a signal without a handler in Python.
_NO_HANDLERS = (None, int(signal.SIG_DFL), int(signal.SIG_IGN))
#: `poll` takes milliseconds as a C int.
_LONGEST_POLL = 2**31 // 1000 - 1
#: Seconds after which a command that still runs is reported: most end sooner, and cost nothing.
_REPORTED_AFTER = 0.05


@dataclass(frozen=True)
class CommandPlace:
    """Where the commands of a task run, if it has a directory or an input of its own.

    Attributes:
        files: the directory for output files without a name.
        directory: the working directory.
        has_input: whether commands get this process's standard input.
    """

    files: Path
    directory: Path
    has_input: bool


_place: ContextVar[CommandPlace | None] = ContextVar("command_place", default=None)


@contextlib.contextmanager
def commands_at(place: CommandPlace) -> Iterator[None]:
    """Have commands run at a place."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


@dataclass(frozen=True)
class ExecutionOutcome:
    """The end of a command: its return code, and the name of the corresponding error."""

    returncode: int
    exception_name: str | None


def outcome_of(returncode: int) -> ExecutionOutcome:
    """Return the outcome of a command that ended by itself.

    Args:
        returncode: its exit code, or minus the signal that killed it.
    """
    return ExecutionOutcome(returncode, _FAILED if returncode else None)


#: The outcome of a command whose walltime is over.
OUT_OF_TIME = ExecutionOutcome(WALLTIME_RETURNCODE, _OUT_OF_TIME)


@dataclass(frozen=True)
class Execution:
    """A command's outcome, and the last lines of its output streams."""

    outcome: ExecutionOutcome
    stdout: str
    stderr: str


@dataclass(frozen=True)
class CommandFiles:
    """The files of a command's output streams, and their sizes in bytes before the command."""

    paths: tuple[str, str]
    starts: tuple[int, int]


class _Reports:
    """Called with the files of each command that runs for a while."""

    to: Callable[[CommandFiles], None] | None = None


def report_files(to: Callable[[CommandFiles], None]) -> None:
    """Call `to` with the files of each command of this process that runs for a while."""
    _Reports.to = to


def run_command(
    command: str,
    *,
    stdout: str | None = None,
    stderr: str | None = None,
    walltime: float | None = None,
    snippet_lines: int = 1000,
) -> Execution:
    """Run `command` with `bash -c` and wait for it, but not for its background processes.

    It runs in `$GC_TASK_SANDBOX_DIR`, which is created, or in the current directory; inside
    `commands_at`, at that place.

    Args:
        command: the command line.
        stdout: file to which its standard output is appended, relative to its working directory; by
            default a new file of the task, named `<task id>.<random>.stdout`. If it remains empty,
            a later command of this process may rename it and use it.
        stderr: the same for its standard error.
        walltime: seconds after which the command and all of its processes are ended.
        snippet_lines: number of last lines of each stream to return.

    Raises:
        OSError: a file can't be written, or there is no `bash`.
    """
    place = _place.get() or _usual_place()
    stem = f"{os.environ.get('GC_TASK_UUID') or uuid.uuid4()}.{uuid.uuid4().hex[:8]}"
    out_path = place.directory / stdout if stdout else place.files / f"{stem}.stdout"
    err_path = place.directory / stderr if stderr else place.files / f"{stem}.stderr"
    with (
        output_file(out_path, may_be_renamed=not stdout) as out,
        output_file(err_path, may_be_renamed=not stderr) as err,
    ):
        out_start, err_start = os.fstat(out).st_size, os.fstat(err).st_size
        files = CommandFiles((str(out_path), str(err_path)), (out_start, err_start))
        outcome = _run(command, place, (out, err), walltime, files)
        limit = snippet_limit(command)
        return Execution(
            outcome,
            last_lines(out, out_start, snippet_lines, limit),
            last_lines(err, err_start, snippet_lines, limit)
            + (lacks_room(out_path, out) or lacks_room(err_path, err)),
        )


def _usual_place() -> CommandPlace:
    sandbox = os.environ.get("GC_TASK_SANDBOX_DIR")
    directory = Path(sandbox) if sandbox else Path.cwd()
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
    return CommandPlace(directory, directory, has_input=False)


def _run(
    command: str,
    place: CommandPlace,
    streams: tuple[int, int],
    walltime: float | None,
    files: CommandFiles,
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
            executable=_bash(os.environ.get("PATH", "")),
            pass_fds=bash.descriptors,
            cwd=place.directory,
            stdin=None if place.has_input else subprocess.DEVNULL,
            stdout=streams[0],
            stderr=streams[1],
            env={**os.environb, MARK.encode(): mark.encode()},
            start_new_session=True,
        )
        tree.started(process.pid)
        try:
            held.release()
            ended = _wait(process, walltime if limited else None, files)
            if not ended:
                tree.end(GRACE)
                _collect(process)
        except BaseException:  # e.g. Ctrl-C: otherwise the command would run on
            tree.end(GRACE)
            process.wait()
            raise
        return outcome_of(process.returncode) if ended else OUT_OF_TIME


@functools.lru_cache(4)
def _bash(path: str) -> str | None:
    """Return the path of the bash that is found in `path`, the value of `PATH`.

    `Popen` would try each directory for each command. `None` has it do so: there is no bash, or it
    depends on the working directory.
    """
    if not all(map(os.path.isabs, path.split(os.pathsep))):
        return None
    return shutil.which("bash", path=path)


class _Invocation:
    """The call of bash for a command, and the descriptors that it needs.

    A command that is too long for an argument is read from an unnamed file. Otherwise it runs like
    any other: in the same shell, with the same `$0` and `$$`.
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
    """Delays exceptions that signal handlers raise, such as KeyboardInterrupt, until `release`.

    Otherwise one could occur between any two steps, and leave an unknown process running.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._came: list[int] = []

    def __enter__(self) -> _HeldSignals:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread runs handlers
        try:
            for number in _SIGNALS:
                handler = _getsignal(number)
                if handler not in _NO_HANDLERS:
                    self._handlers[number] = handler
                    _signal(number, self._note)
        except BaseException:  # from a signal that is not held yet
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _note(self, number: int, _frame: object) -> None:
        self._came.append(number)

    def release(self) -> None:
        """Restore the handlers, and deliver the held signals."""
        for number in list(self._handlers):
            _signal(number, self._handlers[number])
            del self._handlers[number]
        while self._came:
            signal.raise_signal(self._came.pop(0))


def _collect(process: subprocess.Popen[bytes]) -> None:
    """Wait for `process`, and note what it has used: `Popen.wait` does not tell."""
    with contextlib.suppress(ChildProcessError):  # somebody else has collected it
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        note_command(used)
    process.wait()


def _wait(process: subprocess.Popen[bytes], seconds: float | None, files: CommandFiles) -> bool:
    """Wait for `process`; return whether it ended in time. Report `files` if it takes a while."""
    if seconds is None and _Reports.to is None:
        _collect(process)
        return True
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # this system has no pidfd_open
        if seconds is None:
            _collect(process)
            return True
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
    # `Popen.wait` with a timeout polls; this wakes when the process ends.
    try:
        limit = math.inf if seconds is None else seconds
        deadline = time.monotonic() + limit
        if _Reports.to is not None and limit > _REPORTED_AFTER:
            if _has_ended(descriptor, time.monotonic() + _REPORTED_AFTER):
                _collect(process)
                return True
            _Reports.to(files)
        ended = seconds is None or _has_ended(descriptor, deadline)
    finally:
        os.close(descriptor)
    if ended:
        _collect(process)
    return ended


def _has_ended(descriptor: int, deadline: float) -> bool:
    """Wait for the end of a process until a monotonic time; return whether it has ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        left = max(deadline - time.monotonic(), 0.0)
        if poll.poll(math.ceil(min(left, _LONGEST_POLL) * 1000)):
            return True
        if left == 0.0:
            return False
