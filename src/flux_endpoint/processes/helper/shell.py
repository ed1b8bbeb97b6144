"""A shell: starts the commands of one group, watches them, and kills the processes they leave."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import select
import signal
import socket
import stat
import time
from typing import Any, NoReturn

from . import KILL, NOT_EXECUTABLE, NOT_FOUND, NOTICE
from .process import PR_SET_PDEATHSIG, children, drain, prctl, reap, wakeup_socket

#: Signals that are reset for commands, whatever this process handles, Python ignores, or our parent
#: ignored (nohup, a shell's background job).
_DEFAULTED = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


def notice_of(commands: list[dict[str, Any]]) -> float:
    """Return how many seconds the processes left by a group have to end."""
    return max(float(command["env"].get(NOTICE, 0)) for command in commands)


def exit_code(status: int) -> int:
    """Return a wait status as a POSIX shell reports it: 128 + N for signal N."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


# ---- a command: between fork and exec -------------------------------------------------------


def _redirect(source: int | str | None, target: int) -> None:
    if isinstance(source, int):
        os.dup2(source, target)
        return
    if source is None:
        descriptor = os.open(os.devnull, os.O_RDWR)
    elif target == 0:
        descriptor = os.open(source, os.O_RDONLY)
    else:
        descriptor = os.open(source, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, target)
    os.close(descriptor)


def _execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Replace this process as execvp(3) does, including the fallback to /bin/sh."""
    program = argv[0]
    paths = [program]
    if "/" not in program:
        paths = [os.path.join(d, program) for d in os.get_exec_path(env)]  # noqa: PTH118 - fast start
    failure = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    for path in paths if program else []:
        try:
            os.execve(path, argv, env)  # noqa: S606 - no shell is meant
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            if exc.errno == errno.ENOEXEC:
                os.execve("/bin/sh", ["/bin/sh", path, *argv[1:]], env)  # noqa: S606 - a script
            failure = OSError(exc.errno, exc.strerror, program)  # type: ignore[assignment]
            if exc.errno != errno.EACCES:
                break
    raise failure


def _become(command: dict[str, Any], descriptors: list[int], shell: int, report: int) -> NoReturn:
    """Turn this forked child into `command`; errors go to `report` as errno and file name."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _DEFAULTED:
            signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != shell:
            os._exit(1)
        os.chdir(command["cwd"])
        sources = [descriptors[s] if isinstance(s, int) else s for s in command["stdio"]]
        for target, source in enumerate(sources):
            _redirect(source, target)
        if "channel" in command:
            channel = descriptors[command["channel"]]
            os.set_inheritable(channel, True)
            command["env"]["PMI_FD"] = str(channel)
        _execute(command["argv"], command["env"])
    except OSError as exc:
        answer = [exc.errno or errno.EIO, exc.strerror or str(exc), exc.filename]
        os.write(report, json.dumps(answer).encode())
    except ValueError as exc:  # a null byte, or an empty or "=" name in the environment
        os.write(report, json.dumps([errno.EINVAL, str(exc), command["argv"][0]]).encode())
    finally:
        os._exit(NOT_EXECUTABLE)


def _spawn(command: dict[str, Any], descriptors: list[int]) -> int | None:
    """Start `command` without a copy of this process; `None`: only `_fork` can, or can say why not.

    A forked Python costs several times as much as a small program. The kernel does not kill such a
    command when this process dies, but the helper does.
    """
    argv, env = command["argv"], command["env"]
    program = argv[0]
    paths = [program]
    if "/" not in program:
        paths = [os.path.join(d, program) for d in os.get_exec_path(env)]  # noqa: PTH118 - fast start
    actions: list[tuple[Any, ...]] = []
    channel = None
    try:
        os.chdir(command["cwd"])
        for target, source in enumerate(command["stdio"]):
            if isinstance(source, int):
                actions.append((os.POSIX_SPAWN_DUP2, descriptors[source], target))
                continue
            path = source or os.devnull
            if path != os.devnull and not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
                return None  # opening a named pipe may block
            flags = os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_APPEND
            actions.append((os.POSIX_SPAWN_OPEN, target, path, flags, 0))
        if "channel" in command:
            channel = descriptors[command["channel"]]
            env["PMI_FD"] = str(channel)
            os.set_inheritable(channel, True)
        found = next(path for path in paths if os.access(path, os.X_OK))
        return os.posix_spawn(
            found, argv, env, file_actions=actions, setsid=True, setsigdef=_DEFAULTED
        )
    except (OSError, StopIteration, ValueError):
        return None
    finally:
        if channel is not None:
            os.set_inheritable(channel, False)


def _fork(command: dict[str, Any], descriptors: list[int]) -> tuple[int, int]:
    """Fork `command`; return its pid and a pipe that closes when it runs or has failed."""
    shell = os.getpid()
    readable, writable = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _become(command, descriptors, shell, writable)
    except OSError:
        os.close(readable)
        raise
    finally:
        os.close(writable)
    return pid, readable


# ---- a shell: one group of commands ---------------------------------------------------------


class Shell:
    """Starts the commands of one group, watches them, and kills the processes they leave."""

    def __init__(self, key: str, requests: int, events: socket.socket) -> None:
        self._key = key
        self._requests = requests
        self._events = events
        self._running: dict[int, int] = {}  # pid -> index
        self._highest = 0
        self._is_killed = False
        self._deferred = b""  # signals received before all commands have started
        self._wakeup = wakeup_socket()

    def run(self, commands: list[dict[str, Any]], descriptors: list[int]) -> int:
        """Run the group to its end; return the exit status, the highest of the commands'."""
        wakeup = self._wakeup
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(self._requests, select.POLLIN)
        for index, command in enumerate(commands):
            try:
                self._start(index, command, descriptors)
            except OSError as exc:
                self._say("failed", index, exc.errno, exc.strerror, exc.filename)
                return NOT_FOUND if exc.errno == errno.ENOENT else NOT_EXECUTABLE
            if self._is_killed:
                return 128 + signal.SIGKILL
        for descriptor in descriptors:
            os.close(descriptor)
        self._say("started", list(self._running))
        if self._deferred:
            self._obey(self._deferred)
        until = math.inf  # when remaining processes are killed
        while self._running or (children() and time.monotonic() < until and not self._is_killed):
            left = None if until == math.inf else max(0.0, until - time.monotonic()) * 1000
            for ready, _ in poll.poll(left):
                if ready == self._requests:
                    self._obey(os.read(self._requests, 512))
                elif signal.SIGTERM in drain(wakeup):
                    return 128 + signal.SIGTERM
            self._reap()
            if not self._running and until == math.inf:
                until = time.monotonic() + notice_of(commands)
        return self._highest

    def _start(self, index: int, command: dict[str, Any], descriptors: list[int]) -> None:
        """Fork and execute `command`; raise the OSError that prevented it.

        A request to kill is honoured in the meantime: opening a FIFO as a standard stream blocks
        until its other end is opened, which may never happen.
        """
        spawned = _spawn(command, descriptors)
        if spawned is not None:
            self._running[spawned] = index
            return
        pid, readable = _fork(command, descriptors)
        poll = select.poll()
        poll.register(readable, select.POLLIN)
        poll.register(self._requests, select.POLLIN)
        answer = b""
        try:
            while not self._is_killed:
                ready = [descriptor for descriptor, _ in poll.poll()]
                if self._requests in ready:
                    requests = os.read(self._requests, 512) or bytes([KILL])
                    self._is_killed = KILL in requests
                    self._deferred += requests
                elif part := os.read(readable, 4096):
                    answer += part
                else:
                    break
        finally:
            os.close(readable)
        if answer and not self._is_killed:
            os.waitpid(pid, 0)
            code, text, filename = json.loads(answer)
            raise OSError(code, text, filename)
        self._running[pid] = index

    def _say(self, what: str, *details: Any) -> None:
        self._events.send(json.dumps([what, self._key, *details]).encode())

    def _obey(self, requests: bytes) -> None:
        self._is_killed |= KILL in requests or not requests  # end of file: the helper is gone
        for number in requests or bytes([KILL]):
            targets = children() if number == KILL else self._running
            for pid in targets:
                with contextlib.suppress(OSError):
                    if number == KILL:
                        os.kill(pid, signal.SIGKILL)
                    else:
                        os.killpg(pid, number)

    def _reap(self) -> None:
        for pid, status, used in reap():
            index = self._running.pop(pid, None)
            if index is not None:
                self._highest = max(self._highest, exit_code(status))
                seconds = used.ru_utime + used.ru_stime
                self._say("exit", index, status, seconds, used.ru_maxrss * 1024)
