"""Groups of processes that are started, watched, signalled and reliably ended."""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flux_endpoint.logs import event
from flux_endpoint.processes import helper
from flux_endpoint.usage import Usage

log = logging.getLogger(__name__)

#: Runs `helper` as a package of its own, so that nothing of ours, or of a task's, is imported.
_START = (
    f"import sys; sys.path.append({str(Path(helper.__file__).parents[1])!r}); "
    "from helper.main import main; main()"
)


@dataclass(frozen=True)
class Command:
    """One process to start, in its own session and so in its own process group.

    Attributes:
        argv: program and arguments; a program without a slash is searched on `env`'s PATH.
        env: the whole environment.
        cwd: working directory; relative paths below are relative to it.
        stdin: descriptor, path, or `None` for /dev/null. A descriptor is duplicated by `spawn`; the
            caller may close it after that.
        stdout: descriptor, path (opened for append, created with mode 0600), or `None` for
            /dev/null.
        stderr: like `stdout`.
        channel: descriptor of a PMI server for this process, which finds its copy by the variable
            `PMI_FD`; duplicated by `spawn`, too.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    stdin: int | str | None = None
    stdout: int | str | None = None
    stderr: int | str | None = None
    channel: int | None = None


class ProcessKeeper:
    """Starts groups of processes below one helper process, and leaves none behind.

    For each group the helper forks a *shell*, which starts the group's commands, waits for them,
    and at its own end kills all remaining descendants, including daemons: helper and shells are
    child subreapers. If the keeper's owner dies, for whatever reason, the helper kills everything
    below it and exits. A command with `FLUX_ENDPOINT_NOTICE` in its environment then gets SIGTERM
    and that many seconds to end; so do the processes that it leaves at its end.

    A group's callbacks run on one thread of the keeper, in this order: `on_started`, any number of
    `on_task_exit`, `on_group_exit`. If a command can't be started: `on_start_failed`,
    `on_group_exit`. If the group is killed before all of its commands were seen to run:
    `on_group_exit` only. Every spawned group gets its `on_group_exit`, even if the keeper is closed
    or its helper is killed. Callbacks must not block; they may call any method.

    Args:
        on_started: called with the group's key and the pids of its commands, in order.
        on_task_exit: called with key, index of the command and wait status.
        on_group_exit: called with key and wait status of the shell. Its exit code is the highest of
            the commands': 128 + N for a command that signal N ended, 127 if a command was not
            found, 126 if it could not be started for another reason.
        on_start_failed: called with key, index of the command, and the error, whose `filename` says
            what it is about; the group's other commands are killed.
        on_usage: called before `on_task_exit` with key, index of the command, and what it and the
            processes that it waited for have used.
        name: used for the thread's name and in logs.
    """

    def __init__(
        self,
        on_started: Callable[[str, list[int]], None],
        on_task_exit: Callable[[str, int, int], None],
        on_group_exit: Callable[[str, int], None],
        on_start_failed: Callable[[str, int, OSError], None],
        *,
        on_usage: Callable[[str, int, Usage], None] = lambda _key, _index, _usage: None,
        name: str = "keeper",
    ) -> None:
        self._on_started = on_started
        self._on_task_exit = on_task_exit
        self._on_group_exit = on_group_exit
        self._on_start_failed = on_start_failed
        self._on_usage = on_usage
        self._name = name
        self._lock = threading.Lock()  # protects the attributes below
        self._open: set[str] = set()
        self._helper: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._reader: threading.Thread | None = None
        self._ended = False  # whether ends of groups can no longer be reported

    def start(self) -> None:
        """Start the helper. Raises OSError if that is not possible."""
        with self._lock:
            if self._helper is not None:
                raise RuntimeError("the process keeper was started before")
            control, theirs = socket.socketpair()
            events, reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs, reports:
                self._control = control  # first, because `close` ends the helper with it
                ends = (theirs.fileno(), reports.fileno())
                arguments = [str(number) for number in (*ends, os.getpid())]
                self._helper = subprocess.Popen(
                    # Jobspecs are UTF-8, whatever the locale is.
                    [sys.executable, "-I", "-S", "-X", "utf8", "-c", _START, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=ends,
                    cwd="/",
                    start_new_session=True,  # a terminal's Ctrl-C is for the owner only
                )
            self._reader = threading.Thread(
                target=self._read, args=(events,), name=self._name, daemon=True
            )
            self._reader.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Pid of the helper, below which everything runs."""
        return self._helper.pid if self._helper else None

    def spawn(self, key: str, commands: Sequence[Command]) -> None:
        """Start a group; the results come as callbacks.

        Args:
            key: the caller's name for the group; no running group may have it.
            commands: the commands to start, at least one.

        Raises:
            RuntimeError: the keeper is not running.
            ValueError: a group with that key is running, or `commands` is empty.
        """
        if not commands:
            raise ValueError(f"group {key!r}: no commands to start")
        descriptors: list[int] = []
        described = [_describe(command, descriptors) for command in commands]
        with self._lock:
            if key in self._open:
                raise ValueError(f"a group with the key {key!r} is running")
            self._send(["spawn", key, described], descriptors)
            self._open.add(key)

    def signal(self, key: str, signum: int) -> None:
        """Send `signum` to the process group of each running command; ignore an unknown key.

        Raises:
            ValueError: `signum` is not a signal.
        """
        if signum not in signal.valid_signals():
            raise ValueError(f"{signum} is no signal")
        self._request(key, int(signum))

    def kill(self, key: str) -> None:
        """Send SIGKILL to the whole tree of the group; ignore an unknown key."""
        self._request(key, helper.KILL)

    def close(self) -> None:
        """Kill all groups, and wait until helper and callbacks have ended. May be called again."""
        with self._lock:
            if self._control is not None:
                with contextlib.suppress(OSError, RuntimeError):  # the helper has ended
                    self._send(["close", ""], [])
            control, self._control = self._control, None
            process, reader = self._helper, self._reader
        if control is not None:
            control.close()
        if process is not None:
            process.wait()
        if reader is not None and reader is not threading.current_thread():
            reader.join()

    # ---- to the helper ----------------------------------------------------------------------

    def _request(self, key: str, number: int) -> None:
        with self._lock:
            if key in self._open and self._control is not None:
                try:
                    self._send(["signal", key, int(number)], [])
                except (OSError, RuntimeError):  # the helper died: the reader thread reports it
                    return

    def _send(self, request: list[Any], descriptors: list[int]) -> None:
        if self._control is None:
            raise RuntimeError("the process keeper is not running")
        if self._ended:
            raise RuntimeError("the process keeper's helper has ended")
        body = json.dumps(request).encode()
        data = memoryview(helper.HEADER.pack(len(body), len(descriptors)) + body)
        try:
            # Each message with descriptors is carried by one byte.
            for at in range(0, len(descriptors), helper.MAX_DESCRIPTORS):
                passed = array.array("i", descriptors[at : at + helper.MAX_DESCRIPTORS])
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)
                self._control.sendmsg([data[:1]], [rights])
                data = data[1:]
            self._control.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise RuntimeError("the process keeper's helper has ended") from None

    # ---- from the helper --------------------------------------------------------------------

    def _read(self, events: socket.socket) -> None:
        with events:
            while packet := _receive(events):
                self._report(*json.loads(packet))
        with self._lock:
            self._ended = True
            left = sorted(self._open)
            if self._control is not None:
                event(
                    log, logging.ERROR, "process helper died", keeper=self._name, groups=len(left)
                )
        for key in left:
            self._report("end", key, int(signal.SIGKILL))

    def _report(self, what: str, key: str, *details: Any) -> None:
        try:
            match what:
                case "started":
                    self._on_started(key, details[0])
                case "exit":
                    self._on_usage(key, details[0], Usage(*details[2:]))
                    self._on_task_exit(key, details[0], details[1])
                case "failed":
                    self._on_start_failed(key, details[0], OSError(*details[1:]))
                case "end":
                    with self._lock:
                        self._open.discard(key)
                    self._on_group_exit(key, details[0])
        except Exception:
            log.exception("a callback of the process keeper raised")


def _receive(events: socket.socket) -> bytes:
    try:
        return events.recv(1 << 18)
    except ConnectionResetError:
        return b""


def _describe(command: Command, descriptors: list[int]) -> dict[str, Any]:
    if not command.argv:
        raise ValueError("a command needs at least a program")
    stdio: list[int | str | None] = []
    for stream in (command.stdin, command.stdout, command.stderr):
        if isinstance(stream, int):
            descriptors.append(stream)
            stdio.append(len(descriptors) - 1)
        else:
            stdio.append(stream)
    argv, env, cwd = list(command.argv), dict(command.env), str(command.cwd)
    described: dict[str, Any] = {"argv": argv, "env": env, "cwd": cwd, "stdio": stdio}
    if command.channel is not None:
        descriptors.append(command.channel)
        described["channel"] = len(descriptors) - 1
    return described
