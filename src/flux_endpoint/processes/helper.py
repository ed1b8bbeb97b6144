"""The process that a `ProcessKeeper` starts, and the shells that it forks.

It is run by path, isolated (`python -I -S helper.py CONTROL EVENTS OWNER`), and uses only the
standard library, so it starts in milliseconds. It is single-threaded: forking is safe and cheap.

Owner to helper, on the stream socket `CONTROL`: a header of two 32-bit numbers (length, how many
descriptors), then JSON, with the descriptors as SCM_RIGHTS. Helper and shells to owner, on the
SOCK_SEQPACKET socket `EVENTS`: one JSON list a packet.
"""

from __future__ import annotations

import array
import collections
import contextlib
import ctypes
import errno
import gc
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

HEADER = struct.Struct("=II")
#: Requests of the owner besides signals 1..64, each as one byte on a shell's pipe.
KILL = 255
#: The most descriptors that the kernel passes in one message, less a few.
MAX_DESCRIPTORS = 250
#: Variable of a command's environment: after a SIGTERM, the seconds that processes left by the
#: command have to end, and so has the command itself when the owner is gone. All others are killed
#: at once.
NOTICE = "FLUX_ENDPOINT_NOTICE"
#: Exit statuses of a shell that could not start its commands, as of a POSIX shell.
NOT_FOUND = 127
NOT_EXECUTABLE = 126

#: Signals that are reset for commands, whatever this process handles, Python ignores, or our parent
#: ignored (nohup, a shell's background job).
_DEFAULTED = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: Any) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def children() -> list[int]:
    """Return the pids of this single-threaded process's children, zombies included."""
    me = os.getpid()
    with contextlib.suppress(FileNotFoundError):
        return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    found = []  # a kernel without CONFIG_PROC_CHILDREN
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry.name}/stat").read_bytes()
                if int(stat[stat.rindex(b")") + 2 :].split()[1]) == me:
                    found.append(int(entry.name))
    return found


def end_children(keep: frozenset[int] = frozenset()) -> None:
    """Kill and reap every descendant except the children in `keep`.

    Only direct children are signalled: until they are reaped, their pids are not reused. The kernel
    gives a subreaper the orphans of those that die, so the next round reaches these, including
    daemons and new sessions.
    """
    while victims := [pid for pid in children() if pid not in keep]:
        for pid in victims:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in victims:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def notice_of(commands: list[dict[str, Any]]) -> float:
    """Return how many seconds the processes left by a group have to end."""
    return max(float(command["env"].get(NOTICE, 0)) for command in commands)


def _wakeup_socket() -> socket.socket:
    """Return a socket that becomes readable at SIGCHLD and SIGTERM, and yields their numbers."""
    readable, writable = socket.socketpair()
    readable.setblocking(False)
    writable.setblocking(False)
    signal.set_wakeup_fd(writable.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return readable


def _drain(sock: socket.socket) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return sock.recv(4096)
    return b""


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
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
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


class _Shell:
    """Starts the commands of one group, watches them, and kills the processes they leave."""

    def __init__(self, key: str, requests: int, events: socket.socket) -> None:
        self._key = key
        self._requests = requests
        self._events = events
        self._running: dict[int, int] = {}  # pid -> index
        self._highest = 0
        self._is_killed = False
        self._deferred = b""  # signals received before all commands have started
        self._wakeup = _wakeup_socket()

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
                elif signal.SIGTERM in _drain(wakeup):
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
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, used = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                index = self._running.pop(pid, None)
                if index is not None:
                    self._highest = max(self._highest, exit_code(status))
                    seconds = used.ru_utime + used.ru_stime
                    self._say("exit", index, status, seconds, used.ru_maxrss * 1024)


# ---- the helper -----------------------------------------------------------------------------


class _Helper:
    def __init__(self, control: socket.socket, events: socket.socket, owner: int) -> None:
        self._control = control
        self._events = events
        self._owner = owner
        self._shells: dict[int, str] = {}  # pid -> key
        self._pipes: dict[str, int] = {}  # key -> write end of the shell's requests
        self._notice: dict[str, float] = {}  # key -> seconds
        #: Whether the owner has announced that it closes its end; otherwise a close means it is
        #: gone.
        self._is_closed = False
        self._input = bytearray()
        self._descriptors: collections.deque[int] = collections.deque()
        self._unsent: collections.deque[bytes] = collections.deque()
        self._wakeup = _wakeup_socket()
        self._poll = select.poll()

    def run(self) -> None:
        """Serve until the owner is gone, then kill everything below."""
        self._poll.register(self._control, select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)
        # A process that the owner forked may hold a copy of the owner's end of the control socket.
        # Then there is no end of file, and only the owner's pid shows that it is gone.
        watched = -1
        with contextlib.suppress(OSError):
            watched = os.pidfd_open(self._owner)
            self._poll.register(watched, select.POLLIN)
        try:
            if os.getppid() == self._owner:
                self._serve(watched)
            if not self._is_closed:
                self._give_notice()
        finally:
            end_children()

    def _give_notice(self) -> None:
        """Kill everything, since the owner is gone, except groups that asked for time to finish."""
        for key, pipe in self._pipes.items():
            with contextlib.suppress(OSError):
                os.write(pipe, bytes([signal.SIGTERM if key in self._notice else KILL]))
        until = time.monotonic() + max(self._notice.values(), default=0.0)
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        while self._shells and (left := until - time.monotonic()) > 0:
            poll.poll(left * 1000)
            _drain(self._wakeup)
            with contextlib.suppress(ChildProcessError):
                while pid := os.waitpid(-1, os.WNOHANG)[0]:
                    self._notice.pop(self._shells.pop(pid, ""), None)
            if not self._notice:
                return

    def _serve(self, owner: int) -> None:
        control, wakeup = self._control.fileno(), self._wakeup.fileno()
        while True:
            for ready, _ in self._poll.poll():
                if ready == owner or (ready == control and not self._receive()):
                    return
                if ready == wakeup:
                    if signal.SIGTERM in _drain(self._wakeup):
                        return
                    self._reap()
            self._flush()

    def _say(self, what: str, *details: Any) -> None:
        self._unsent.append(json.dumps([what, *details]).encode())
        self._flush()

    def _flush(self) -> None:
        had = bool(self._unsent)
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                # Nonblocking: the owner may itself be waiting for us to take a request.
                self._events.send(self._unsent[0], socket.MSG_DONTWAIT)
                self._unsent.popleft()
        if self._unsent:
            self._poll.register(self._events, select.POLLOUT)
        elif had:
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._events)

    def _receive(self) -> bool:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
        data, ancillary, _, _ = self._control.recvmsg(1 << 18, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._descriptors.extend(numbers)
        self._input += data
        while len(self._input) >= HEADER.size:
            length, count = HEADER.unpack_from(self._input)
            if len(self._input) < HEADER.size + length:
                break
            request = json.loads(self._input[HEADER.size : HEADER.size + length])
            del self._input[: HEADER.size + length]
            descriptors = [self._descriptors.popleft() for _ in range(count)]
            try:
                self._handle(request, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        return bool(data)

    def _handle(self, request: list[Any], descriptors: list[int]) -> None:
        key = request[1]
        if request[0] == "close":
            self._is_closed = True
        elif request[0] == "spawn":
            try:
                self._fork_shell(key, request[2], descriptors)
            except OSError as exc:
                self._say("failed", key, 0, exc.errno, exc.strerror, exc.filename)
                self._say("end", key, NOT_EXECUTABLE << 8)
        elif key in self._pipes:
            with contextlib.suppress(OSError):
                os.write(self._pipes[key], bytes([request[2]]))

    def _fork_shell(self, key: str, commands: list[dict[str, Any]], descriptors: list[int]) -> None:
        requests, pipe = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(requests)
            os.close(pipe)
            raise
        if pid == 0:
            self._be_shell(key, requests, pipe, commands, descriptors)
        os.close(requests)
        os.set_blocking(pipe, False)
        if seconds := notice_of(commands):
            self._notice[key] = seconds
        self._shells[pid] = key
        self._pipes[key] = pipe

    def _be_shell(
        self,
        key: str,
        requests: int,
        pipe: int,
        commands: list[dict[str, Any]],
        descriptors: list[int],
    ) -> NoReturn:
        status = 1
        try:
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)
            self._control.close()
            # Only the helper has the write ends here, so its death is an end of file.
            for other in (pipe, *self._pipes.values()):
                os.close(other)
            shell = _Shell(key, requests, self._events)
            status = shell.run(commands, descriptors)
        except BrokenPipeError:  # the owner is gone
            pass
        finally:
            end_children()
            os._exit(status)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                key = self._shells.pop(pid, None)
                if key is not None:
                    if os.WIFSIGNALED(status):  # it could not clean up: its orphans are ours now
                        end_children(frozenset(self._shells))
                    os.close(self._pipes.pop(key))
                    self._notice.pop(key, None)
                    self._say("end", key, status)


def main() -> None:
    """Run the helper on the descriptors and the owner's pid given as arguments."""
    control, events, owner = (int(argument) for argument in sys.argv[1:4])
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_NAME, b"process-keeper")
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    gc.disable()
    gc.freeze()
    for descriptor in (control, events):
        os.set_inheritable(descriptor, False)
    served = _Helper(socket.socket(fileno=control), socket.socket(fileno=events), owner)
    with contextlib.suppress(BrokenPipeError):
        served.run()


if __name__ == "__main__":
    main()
