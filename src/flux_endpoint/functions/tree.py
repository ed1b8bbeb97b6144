"""The processes of one command, and how they all end when its time is over."""

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

#: How often to look again for processes that others started since they were listed.
_ROUNDS = 20
#: How long killed processes have to disappear, in seconds a round.
_KILL_PATIENCE = 1.0

#: Variable by which a command's processes are known, wherever they went.
MARK = "FLUX_ENDPOINT_COMMAND"


class CommandTree:
    """Everything that one command started, including what left its session and its parents.

    Use as a context manager around the command: a descendant that daemonises then becomes a child
    of this process, where it can be found.

    Args:
        mark: text, unique to the run, that the command has in its environment as `MARK`.
        adopt: whether to take in orphans; without, only those that stay in the command's session
            or below their parents are found (and this process never has to collect strangers).
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
        self._before = frozenset(_children())
        return self

    def __exit__(self, *_: object) -> None:
        if self._adopt and _subreaper.leave():
            _subreaper.leave_behind(set(self._orphans(certain=True)))

    def started(self, leader: int) -> None:
        """Say which process leads the command's session."""
        self._leader = leader

    def end(self, grace: float) -> None:
        """End all of it: SIGTERM, then after `grace` seconds SIGKILL; return when it has ended."""
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
            _wait(members, _KILL_PATIENCE)

    def _members(self) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for pid in (self._leader, *self._orphans(certain=False)):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                for member in (process, *process.children(recursive=True)):
                    found[member.pid] = member
        return [process for process in found.values() if _alive(process)]

    def _orphans(self, *, certain: bool) -> Iterator[int]:
        """Yield our children, besides the leader, that are this command's.

        Those in its session and those with its mark certainly are. Any other child that is new may
        have cleaned its environment; where no other command runs and this process is a
        subreaper by profession, it is this command's, too.
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
    """Whether orphaned descendants come to this process; shared by all commands it runs."""

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
        """Return whether we, and not somebody before us, made this process a subreaper."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and not self._was_set:
                _prctl_set(0)
            return not self._was_set

    def runs_commands_only(self) -> bool:
        with self._lock:
            return self._was_set and self._users == 1

    def leave_behind(self, pids: set[int]) -> None:
        """Take note of orphans that live on and that nobody but us can collect."""
        with self._lock:
            self._left_behind |= pids

    def collect(self) -> None:
        """Collect those of them that have ended."""
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
        # Far cheaper than to look at every process of the machine.
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
    """Wait until all have ended, zombies included, for at most so long."""
    deadline = time.monotonic() + seconds
    waiting = processes
    while waiting and (left := deadline - time.monotonic()) > 0:
        # In short slices: a zombie that its own parent does not collect never ends for psutil.
        _, waiting = psutil.wait_procs(waiting, timeout=min(left, 0.1))
        waiting = [process for process in waiting if _alive(process)]
