"""Tracks the processes of one command, and ends them all when its time is over."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37

#: Seconds between scans for processes that others have started since the last scan.
_ROUNDS = 20
#: Seconds per round that killed processes have to disappear.
_KILL_TIMEOUT = 1.0

#: Variable that marks a command's processes, wherever they are.
MARK = "FLUX_ENDPOINT_COMMAND"


class CommandTree:
    """All processes that one command started, including those that left its session or parents.

    Use it as a context manager around the command: descendants that daemonise then become children
    of this process, where they can be found.

    Args:
        mark: text, unique to the run, that the command has in its environment as `MARK`.
        adopt: whether to adopt orphans; without it, only processes in the command's session or
            below their parents are found (and this process never has to reap unrelated ones).
    """

    def __init__(self, mark: str, *, adopt: bool) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._adopt = adopt
        self._before: frozenset[int] = frozenset()
        self._leader = 0

    def __enter__(self) -> CommandTree:
        _subreaper.collect()
        if self._adopt:
            _subreaper.enter()
            # Without adoption, session and mark tell which children are the command's.
            self._before = frozenset(_children())
        return self

    def __exit__(self, *_: object) -> None:
        if self._adopt and _subreaper.leave():
            _subreaper.leave_behind(set(self._orphans(certain=True)))

    def started(self, leader: int) -> None:
        """Set the process that leads the command's session."""
        self._leader = leader

    def end(self, grace: float) -> None:
        """End all processes: SIGTERM, then SIGKILL after `grace` seconds; return when all ended."""
        gentle = self._members()
        for process in gentle:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _wait(gentle, grace)
        for _ in range(_ROUNDS):
            members = self._members()
            if not members:
                return
            for process in members:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            _wait(members, _KILL_TIMEOUT)

    def _members(self) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for pid in (self._leader, *self._orphans(certain=False)):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                for member in (process, *process.children(recursive=True)):
                    found[member.pid] = member
        return [process for process in found.values() if _alive(process)]

    def _orphans(self, *, certain: bool) -> Iterator[int]:
        """Yield this process's children, except the leader, that belong to this command.

        Children in its session and children with its mark certainly do. Any other new child may
        have cleared its environment; if no other command runs and this process is a subreaper
        anyway, the child belongs to this command, too.
        """
        for pid in _children():
            if pid == self._leader or pid in self._before:
                continue
            if (
                _session(pid) == self._leader
                or self._mark in _environment(pid)
                or (not certain and self._adopt and _subreaper.runs_commands_only())
            ):
                yield pid


class _Subreaper:
    """Whether orphaned descendants become children of this process; shared by all its commands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._was_set = False
        self._left_behind: set[int] = set()

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._was_set = _prctl_get()
                if not self._was_set:
                    _prctl_set(1)

    def leave(self) -> bool:
        """Return whether this object, and nothing before it, made this process a subreaper."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and not self._was_set:
                _prctl_set(0)
            return not self._was_set

    def runs_commands_only(self) -> bool:
        with self._lock:
            return self._was_set and self._users == 1

    def leave_behind(self, pids: set[int]) -> None:
        """Record orphans that live on and that only this process can reap."""
        with self._lock:
            self._left_behind |= pids

    def collect(self) -> None:
        """Reap those of them that have ended."""
        if not self._left_behind:
            return
        with self._lock:
            for pid in list(self._left_behind):
                try:
                    ended = os.waitpid(pid, os.WNOHANG) != (0, 0)
                except ChildProcessError:
                    ended = True
                if ended:
                    self._left_behind.discard(pid)


_subreaper = _Subreaper()


def _prctl_set(value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, value, 0, 0, 0)


def _prctl_get() -> bool:
    value = ctypes.c_int(0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0)
    return bool(value.value)


def _children() -> list[int]:
    """Return the ids of this process's children, zombies included."""
    try:
        # Far cheaper than scanning all processes of the machine.
        lists = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
    except OSError:
        return [child.pid for child in psutil.Process().children()]
    return [int(pid) for text in lists for pid in text.split()]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(processes: list[psutil.Process], seconds: float) -> None:
    """Wait at most `seconds` until all have ended, including zombies."""
    deadline = time.monotonic() + seconds
    waiting = processes
    while waiting and (left := deadline - time.monotonic()) > 0:
        # In short slices: for psutil, a zombie that its parent does not reap never ends.
        _, waiting = psutil.wait_procs(waiting, timeout=min(left, 0.1))
        waiting = [process for process in waiting if _alive(process)]
